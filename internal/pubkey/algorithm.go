package pubkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
)

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

// Algorithms are all of them, in a fixed order.
func Algorithms() []Algorithm {
	return []Algorithm{ECDSAP256, ECDSAP384, ECDSAP521, RSA2048, RSA3072, RSA4096}
}

// curve is the row of an ECDSA key in Curves; the zero Curve for another.
func (a Algorithm) curve() Curve {
	if i := slices.IndexFunc(Curves, func(c Curve) bool { return c.Algorithm == string(a) }); i >= 0 {
		return Curves[i]
	}
	return Curve{}
}

// Curve is the curve of an ECDSA key; nil for another.
func (a Algorithm) Curve() elliptic.Curve { return a.curve().Curve }

// Bits is the size of an RSA key's modulus; 0 for another.
func (a Algorithm) Bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	default:
		return 0
	}
}

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
	const accepted = "use ECDSA P-256, P-384 or P-521, or RSA of 2048, 3072 or 4096 bits"
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		for _, c := range Curves {
			if c.Curve == k.Curve {
				return Algorithm(c.Algorithm), nil
			}
		}
		return "", fmt.Errorf("curve %s isn't supported: %s", k.Curve.Params().Name, accepted)
	case *rsa.PublicKey:
		for _, a := range Algorithms() {
			if bits := a.Bits(); bits > 0 && bits == k.N.BitLen() {
				return a, nil
			}
		}
		return "", fmt.Errorf("RSA of %d bits isn't supported: %s", k.N.BitLen(), accepted)
	default:
		return "", fmt.Errorf("a key of type %T isn't supported: %s", public, accepted)
	}
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
