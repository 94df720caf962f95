package kms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"

	// The hashes that authorities sign with; crypto.Hash.New needs them linked.
	_ "crypto/sha256"
	_ "crypto/sha512"
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

// algorithms holds what differs: the curve or the size in bits, and the hash
// that certificates are signed with.
var algorithms = []struct {
	name  Algorithm
	curve elliptic.Curve
	bits  int
	hash  crypto.Hash
}{
	{ECDSAP256, elliptic.P256(), 0, crypto.SHA256}, // FIPS 186-5 §6.1: a hash no weaker than the curve
	{ECDSAP384, elliptic.P384(), 0, crypto.SHA384},
	{ECDSAP521, elliptic.P521(), 0, crypto.SHA512},
	{RSA2048, nil, 2048, crypto.SHA256},
	{RSA3072, nil, 3072, crypto.SHA256},
	{RSA4096, nil, 4096, crypto.SHA256},
}

// Algorithms are all of them, in a fixed order.
func Algorithms() []Algorithm {
	all := make([]Algorithm, len(algorithms))
	for i, a := range algorithms {
		all[i] = a.name
	}
	return all
}

// Hash is the hash that certificates are signed with under a key of this kind;
// zero for an unknown one.
func (a Algorithm) Hash() crypto.Hash {
	for _, known := range algorithms {
		if known.name == a {
			return known.hash
		}
	}
	return 0
}

// AlgorithmOf names a public key's algorithm. The error says what is accepted.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) {
	const accepted = "use ECDSA P-256, P-384 or P-521, or RSA of 2048, 3072 or 4096 bits"
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		for _, a := range algorithms {
			if a.curve != nil && a.curve == k.Curve {
				return a.name, nil
			}
		}
		return "", fmt.Errorf("curve %s isn't supported: %s", k.Curve.Params().Name, accepted)
	case *rsa.PublicKey:
		for _, a := range algorithms {
			if a.bits == k.N.BitLen() {
				return a.name, nil
			}
		}
		return "", fmt.Errorf("RSA of %d bits isn't supported: %s", k.N.BitLen(), accepted)
	default:
		return "", fmt.Errorf("a key of type %T isn't supported: %s", public, accepted)
	}
}

// generate makes a new private key.
func (a Algorithm) generate() (crypto.Signer, error) {
	for _, known := range algorithms {
		switch {
		case known.name != a:
		case known.curve != nil:
			return ecdsa.GenerateKey(known.curve, rand.Reader)
		default:
			return rsa.GenerateKey(rand.Reader, known.bits)
		}
	}
	return nil, fmt.Errorf("algorithm %q is unknown (known: %v)", string(a), Algorithms())
}

// Verify checks a signature as [Signer] makes it: opts is a hash, or
// *rsa.PSSOptions for RSA-PSS.
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
