package proof

import (
	"crypto"
	"crypto/rsa"
	encodingasn1 "encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// CSR proves the possession of a key by a PKCS#10 certificate request in PEM:
// its signature covers the key. The subject, names, extensions and attributes
// asked for are neither read nor used; the verified token alone says who it is.
//
// Accepted signatures: ECDSA with the hash of the curve's size, RSA PKCS#1 v1.5
// with SHA-256, SHA-384 or SHA-512, Ed25519.
//
// Errors: CSR_MALFORMED, CSR_INVALID; KEY_MALFORMED, KEY_UNSUPPORTED, KEY_WEAK
// for the key inside; KEY_TOO_LARGE for a request over MaxCSRBytes.
func (p *Policy) CSR(pem []byte) (Key, error) {
	if len(pem) > MaxCSRBytes {
		return Key{}, tooLarge(fault.KeyTooLarge, "the certificate request", MaxCSRBytes)
	}
	der, err := decodeCSR(pem)
	if err != nil {
		return Key{}, err
	}
	request, err := parseCSR(der)
	if err != nil {
		return Key{}, err
	}
	public, err := p.parseKey(request.spki)
	if err != nil {
		return Key{}, err
	}
	hash, err := public.requestHash(request)
	if err != nil {
		return Key{}, err
	}
	if !public.signed(request.info, request.signature, hash) {
		return Key{}, fault.New(fault.CSRInvalid, "the certificate request's signature does not verify with the key in it")
	}
	return public.key()
}

// request is what matters of a CertificationRequest, as slices of its bytes.
type request struct {
	info      []byte // CertificationRequestInfo with its header: what is signed
	spki      []byte
	algorithm encodingasn1.ObjectIdentifier
	bare      bool // the algorithm's parameters are absent
	null      bool // the algorithm's parameters are NULL
	signature []byte
}

// parseCSR takes a DER CertificationRequest apart (RFC 2986 §4). The version,
// the subject and the attributes need only be well-formed elements of their type.
func parseCSR(der []byte) (request, error) {
	var (
		input                              = cryptobyte.String(der)
		outer, info, body, spki, algorithm cryptobyte.String
		parameters                         cryptobyte.String
		r                                  request
		attributes                         = asn1.Tag(0).ContextSpecific().Constructed()
	)
	malformed := fault.New(fault.CSRMalformed, "the certificate request can't be read: expected a PKCS#10 CertificationRequest")
	if !input.ReadASN1(&outer, asn1.SEQUENCE) || !outer.ReadASN1Element(&info, asn1.SEQUENCE) {
		return r, malformed
	}
	if !input.Empty() {
		return r, fault.New(fault.CSRMalformed, "bytes follow the certificate request inside its PEM block")
	}
	r.info = info
	if !info.ReadASN1(&body, asn1.SEQUENCE) || !body.SkipASN1(asn1.INTEGER) || !body.SkipASN1(asn1.SEQUENCE) ||
		!body.ReadASN1Element(&spki, asn1.SEQUENCE) || !body.SkipOptionalASN1(attributes) || !body.Empty() {
		return r, malformed
	}
	if !outer.ReadASN1(&algorithm, asn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&r.algorithm) ||
		!outer.ReadASN1BitStringAsBytes(&r.signature) || !outer.Empty() {
		return r, malformed
	}
	r.spki = spki
	r.bare = algorithm.Empty()
	r.null = algorithm.ReadASN1(&parameters, asn1.NULL) && parameters.Empty() && algorithm.Empty()
	return r, nil
}

// requestAlgorithms are the accepted signature algorithms. The parameters are
// absent; for RSA they are NULL, and absent ones are read too.
var requestAlgorithms = []struct {
	oid  encodingasn1.ObjectIdentifier
	hash crypto.Hash
	rsa  bool
}{
	{encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256, false}, // RFC 5758 §3.2
	{encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384, false},
	{encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512, false},
	{encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, true}, // RFC 4055 §5
	{encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, crypto.SHA384, true},
	{encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, crypto.SHA512, true},
	{oidEd25519, 0, false}, // RFC 8410 §3
}

// requestHash is the hash that the request was signed with, or the refusal of
// its signature algorithm. ECDSA needs the hash of the curve's size.
func (k publicKey) requestHash(r request) (crypto.Hash, error) {
	_, isRSA := k.public.(*rsa.PublicKey)
	for _, a := range requestAlgorithms {
		if a.oid.Equal(r.algorithm) && a.rsa == isRSA && (isRSA || a.hash == k.hash) && (r.bare || isRSA && r.null) {
			return a.hash, nil
		}
	}
	return 0, fault.New(fault.CSRInvalid, "the certificate request's signature algorithm is not accepted: expected %s", k.request)
}
