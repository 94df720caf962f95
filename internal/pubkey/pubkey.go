// Package pubkey holds what every part that handles public keys must agree on.
package pubkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
)

// Equal reports whether two public keys of any types are the same.
func Equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Digest is the SHA-256, SHA-384 or SHA-512 of a message; nil for another hash. It takes one
// allocation, where hash.New takes two.
func Digest(hash crypto.Hash, message []byte) []byte {
	switch hash {
	case crypto.SHA256:
		sum := sha256.Sum256(message)
		return sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(message)
		return sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512(message)
		return sum[:]
	}
	return nil
}

// Verify checks a signature over a digest: opts is a hash, or *rsa.PSSOptions for
// RSA-PSS. ECDSA signatures are in ASN.1 DER.
func Verify(public crypto.PublicKey, opts crypto.SignerOpts, digest, sig []byte) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, digest, sig) {
			return errors.New("the ECDSA signature doesn't verify under the key's own public key")
		}
		return nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(k, opts.HashFunc(), digest, sig, pss)
		}
		return rsa.VerifyPKCS1v15(k, opts.HashFunc(), digest, sig)
	default:
		return fmt.Errorf("can't verify with a key of type %T", public)
	}
}

// Curve is a curve whose keys are accepted.
type Curve struct {
	elliptic.Curve
	OID       asn1.ObjectIdentifier // RFC 5480 §2.1.1.1
	Algorithm string                // the name of the keys' algorithm
	Hash      crypto.Hash           // no weaker than the curve: FIPS 186-5 §6.1
}

// Curves are all of them.
var Curves = []Curve{
	{elliptic.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, "ECDSA-P256", crypto.SHA256},
	{elliptic.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}, "ECDSA-P384", crypto.SHA384},
	{elliptic.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}, "ECDSA-P521", crypto.SHA512},
}

// NamedCurve is the curve that oid names.
func NamedCurve(oid asn1.ObjectIdentifier) (Curve, bool) {
	return curveThat(func(c Curve) bool { return c.OID.Equal(oid) })
}

func curveThat(is func(Curve) bool) (c Curve, ok bool) {
	if i := slices.IndexFunc(Curves, is); i >= 0 {
		return Curves[i], true
	}
	return c, false
}

// Unsupported names the kinds of key and the curves that people do send and that aren't
// accepted, by their identifiers.
var Unsupported = map[string]string{
	"1.2.840.113549.1.1.10":   "RSASSA-PSS",
	"1.2.840.113549.1.1.7":    "RSAES-OAEP",
	"1.2.840.10040.4.1":       "DSA",
	"1.2.840.113549.1.3.1":    "DH",
	"1.2.840.10046.2.1":       "DH",
	"1.3.132.1.12":            "ECDH",
	"1.3.101.110":             "X25519",
	"1.3.101.111":             "X448",
	"1.3.101.113":             "Ed448",
	"2.16.840.1.101.3.4.3.17": "ML-DSA-44",
	"2.16.840.1.101.3.4.3.18": "ML-DSA-65",
	"2.16.840.1.101.3.4.3.19": "ML-DSA-87",

	"1.3.132.0.33":          "P-224",
	"1.3.132.0.10":          "secp256k1",
	"1.2.840.10045.3.1.1":   "P-192",
	"1.3.36.3.3.2.8.1.1.7":  "brainpoolP256r1",
	"1.3.36.3.3.2.8.1.1.11": "brainpoolP384r1",
	"1.3.36.3.3.2.8.1.1.13": "brainpoolP512r1",
	"1.2.156.10197.1.301":   "SM2",
}

// Accepted says which keys of authorities are.
const Accepted = "use ECDSA P-256, P-384 or P-521, or RSA of 2048, 3072 or 4096 bits"

// Algorithm is a kind of key that an authority may have.
type Algorithm string

// The algorithms, by the names that proof.Key uses too.
const (
	ECDSAP256 Algorithm = "ECDSA-P256"
	ECDSAP384 Algorithm = "ECDSA-P384"
	ECDSAP521 Algorithm = "ECDSA-P521"
	RSA2048   Algorithm = "RSA-2048"
	RSA3072   Algorithm = "RSA-3072"
	RSA4096   Algorithm = "RSA-4096"
)

var rsaBits = map[Algorithm]int{RSA2048: 2048, RSA3072: 3072, RSA4096: 4096}

// Algorithms are all of them, in a fixed order.
func Algorithms() []Algorithm {
	return []Algorithm{ECDSAP256, ECDSAP384, ECDSAP521, RSA2048, RSA3072, RSA4096}
}

// curve is the row of an ECDSA key in Curves; the zero Curve for another.
func (a Algorithm) curve() Curve {
	c, _ := curveThat(func(c Curve) bool { return c.Algorithm == string(a) })
	return c
}

// Curve is the curve of an ECDSA key; nil for another.
func (a Algorithm) Curve() elliptic.Curve { return a.curve().Curve }

// Bits is the size of an RSA key's modulus; 0 for another.
func (a Algorithm) Bits() int { return rsaBits[a] }

// Hash is the hash that certificates are signed with under a key of this kind;
// zero for an unknown one.
func (a Algorithm) Hash() crypto.Hash {
	if a.Bits() > 0 {
		return crypto.SHA256
	}
	return a.curve().Hash
}

// AlgorithmOf names a public key's algorithm. The error says what is accepted.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if c, ok := curveThat(func(c Curve) bool { return c.Curve == k.Curve }); ok {
			return Algorithm(c.Algorithm), nil
		}
		return "", fmt.Errorf("curve %s isn't supported: %s", k.Curve.Params().Name, Accepted)
	case *rsa.PublicKey:
		if a := Algorithm(fmt.Sprintf("RSA-%d", k.N.BitLen())); a.Bits() > 0 {
			return a, nil
		}
		return "", fmt.Errorf("RSA of %d bits isn't supported: %s", k.N.BitLen(), Accepted)
	}
	return "", fmt.Errorf("a key of type %T isn't supported: %s", public, Accepted)
}

// Generate makes a new private key. The error is for an unknown algorithm.
func (a Algorithm) Generate() (crypto.Signer, error) {
	switch curve, bits := a.Curve(), a.Bits(); {
	case curve != nil:
		return ecdsa.GenerateKey(curve, rand.Reader)
	case bits > 0:
		return rsa.GenerateKey(rand.Reader, bits)
	default:
		return nil, fmt.Errorf("algorithm %q is unknown (known: %v)", string(a), Algorithms())
	}
}

// Name is the key's algorithm with its size, for people; "" for one of another kind.
func Name(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return ""
	}
}
