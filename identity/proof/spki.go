package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	encodingasn1 "encoding/asn1"
	"math/big"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// publicKey is a key that parsed and is strong, of which nothing is proven yet.
type publicKey struct {
	public    crypto.PublicKey
	algorithm string
	hash      crypto.Hash // what a proof is made with; zero for Ed25519, which hashes by itself

	proof, request string // the signatures that are accepted as a proof and of a request, in words
}

// accepted is the end of every refusal of a key's kind.
const accepted = "accepted are ECDSA P-256, P-384 and P-521, RSA 2048, 3072 and 4096, and Ed25519"

// Algorithm identifiers of public keys.
var (
	oidRSA     = encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}  // rsaEncryption, RFC 3279 §2.3.1
	oidEC      = encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}      // id-ecPublicKey, RFC 5480 §2.1.1
	oidEd25519 = encodingasn1.ObjectIdentifier{1, 3, 101, 112}              // id-Ed25519, RFC 8410 §3
	oidPBES2   = encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13} // an encrypted PKCS#8 key, RFC 8018 §6.2
)

// parseKey reads a DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) strictly, with
// the cheap checks first: nothing is computed with a number whose size or
// exponent isn't accepted.
func (p *Policy) parseKey(der []byte) (publicKey, error) {
	if err := notPublic(der); err != nil {
		return publicKey{}, err
	}
	var (
		input           = cryptobyte.String(der)
		spki, algorithm cryptobyte.String
		oid             encodingasn1.ObjectIdentifier
		bits            []byte
	)
	if !input.ReadASN1(&spki, asn1.SEQUENCE) || !spki.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) || !spki.ReadASN1BitStringAsBytes(&bits) || !spki.Empty() {
		return publicKey{}, fault.New(fault.KeyMalformed, "the public key can't be read: expected one SubjectPublicKeyInfo in PEM or DER")
	}
	if !input.Empty() {
		return publicKey{}, fault.New(fault.KeyMalformed, "bytes follow the public key: send one SubjectPublicKeyInfo alone")
	}
	switch {
	case oid.Equal(oidEC):
		return parseEC(algorithm, bits)
	case oid.Equal(oidRSA):
		return p.parseRSA(algorithm, bits)
	case oid.Equal(oidEd25519):
		return parseEd25519(algorithm, bits)
	}
	if name, ok := pubkey.Unsupported[oid.String()]; ok {
		return publicKey{}, fault.New(fault.KeyUnsupported, "%s keys are not accepted; %s", name, accepted)
	}
	return publicKey{}, fault.New(fault.KeyUnsupported, "the key's algorithm is not accepted; %s", accepted)
}

// notPublic recognises the DER of what people send in a public key's place, to
// tell them so: a private key above all. It refuses only what parseKey would.
func notPublic(der []byte) error {
	var inner, first cryptobyte.String
	var tag asn1.Tag
	input := cryptobyte.String(der)
	if !input.ReadASN1(&inner, asn1.SEQUENCE) || !inner.ReadAnyASN1(&first, &tag) {
		return nil
	}
	var oid encodingasn1.ObjectIdentifier
	switch tag {
	case asn1.INTEGER:
		// A version, 0 or 1, begins PKCS#8 (RFC 5208 §5), PKCS#1 (RFC 8017 §A.1.2)
		// and SEC 1 (RFC 5915 §3) private keys.
		if len(first) == 1 && first[0] <= 1 {
			return errPrivateKey(fault.KeyMalformed)
		}
	case asn1.SEQUENCE:
		if first.PeekASN1Tag(asn1.Tag(0).ContextSpecific().Constructed()) { // a version: RFC 5280 §4.1
			return fault.New(fault.KeyMalformed, isCertificate)
		}
		if first.ReadASN1ObjectIdentifier(&oid) && oid.Equal(oidPBES2) {
			return errPrivateKey(fault.KeyMalformed)
		}
	}
	return nil
}

// parseEC reads an elliptic curve key (RFC 5480 §2): a named curve and an
// uncompressed point that is on it and isn't its identity. The curves have
// cofactor 1, so such a point has the right order.
func parseEC(parameters cryptobyte.String, point []byte) (publicKey, error) {
	var oid encodingasn1.ObjectIdentifier
	if parameters.PeekASN1Tag(asn1.SEQUENCE) {
		return publicKey{}, fault.New(fault.KeyUnsupported, "explicit curve parameters are not accepted: name the curve; %s", accepted)
	}
	if !parameters.ReadASN1ObjectIdentifier(&oid) || !parameters.Empty() {
		return publicKey{}, fault.New(fault.KeyMalformed, "the key names no curve; %s", accepted)
	}
	curve, ok := pubkey.NamedCurve(oid)
	if !ok {
		if name, ok := pubkey.Unsupported[oid.String()]; ok {
			return publicKey{}, fault.New(fault.KeyUnsupported, "the curve %s is not accepted; %s", name, accepted)
		}
		return publicKey{}, fault.New(fault.KeyUnsupported, "the key's curve is not accepted; %s", accepted)
	}
	switch {
	case len(point) == 1 && point[0] == 0: // SEC 1 §2.3.3
		return publicKey{}, fault.New(fault.KeyMalformed, "the key is the point at infinity")
	case len(point) > 0 && (point[0] == 2 || point[0] == 3):
		return publicKey{}, fault.New(fault.KeyUnsupported, "compressed points are not accepted: send the uncompressed point")
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve.Curve, point)
	if err != nil {
		return publicKey{}, fault.New(fault.KeyMalformed, "the key is not a point on its curve").Because(err)
	}
	return publicKey{
		public: public, algorithm: curve.Algorithm, hash: curve.Hash,
		proof: "an ASN.1 DER ECDSA signature with " + curve.Hash.String(), request: "ECDSA with " + curve.Hash.String(),
	}, nil
}

// parseRSA reads an RSA key (RFC 3279 §2.3.1) of an accepted size and exponent
// and asks for its weaknesses only then.
func (p *Policy) parseRSA(parameters cryptobyte.String, bits []byte) (publicKey, error) {
	var (
		null cryptobyte.String
		body = cryptobyte.String(bits)
		pair cryptobyte.String
		n, e = new(big.Int), new(big.Int)
	)
	if !parameters.ReadASN1(&null, asn1.NULL) || !null.Empty() || !parameters.Empty() ||
		!body.ReadASN1(&pair, asn1.SEQUENCE) || !body.Empty() ||
		!pair.ReadASN1Integer(n) || !pair.ReadASN1Integer(e) || !pair.Empty() || n.Sign() <= 0 || e.Sign() <= 0 {
		return publicKey{}, fault.New(fault.KeyMalformed, "the RSA key can't be read: expected a modulus and an exponent, both positive")
	}
	if err := acceptedSize(n, e); err != nil {
		return publicKey{}, err
	}
	public := &rsa.PublicKey{N: n, E: rsaExponent}
	if err := p.strong(public); err != nil {
		return publicKey{}, err
	}
	return publicKey{
		public: public, algorithm: "RSA-" + strconv.Itoa(n.BitLen()), hash: crypto.SHA256,
		proof: "an RSA PKCS#1 v1.5 signature with SHA-256", request: "RSA PKCS#1 v1.5 with SHA-256, SHA-384 or SHA-512",
	}, nil
}

// parseEd25519 reads an Ed25519 key (RFC 8410 §3 and §4).
func parseEd25519(parameters cryptobyte.String, bits []byte) (publicKey, error) {
	if !parameters.Empty() || len(bits) != ed25519.PublicKeySize {
		return publicKey{}, fault.New(fault.KeyMalformed, "the Ed25519 key can't be read: expected %d bytes and no parameters", ed25519.PublicKeySize)
	}
	public := ed25519.PublicKey(bytes.Clone(bits))
	if err := strongEd25519(public); err != nil {
		return publicKey{}, err
	}
	return publicKey{public: public, algorithm: "Ed25519", proof: "a pure Ed25519 signature", request: "Ed25519"}, nil
}
