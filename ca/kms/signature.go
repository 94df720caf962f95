package kms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Algorithm is a kind of key that an authority may have.
type Algorithm = pubkey.Algorithm

// The algorithms.
const (
	ECDSAP256 = pubkey.ECDSAP256
	ECDSAP384 = pubkey.ECDSAP384
	ECDSAP521 = pubkey.ECDSAP521
	RSA2048   = pubkey.RSA2048
	RSA3072   = pubkey.RSA3072
	RSA4096   = pubkey.RSA4096
)

// Algorithms are all of them, in a fixed order.
func Algorithms() []Algorithm { return pubkey.Algorithms() }

// AlgorithmOf names a public key's algorithm. The error says what is accepted.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) { return pubkey.AlgorithmOf(public) }

// SignatureScheme is one way to sign: a kind of key, a hash, and for RSA the padding.
type SignatureScheme struct {
	Key  Algorithm
	Hash crypto.Hash
	PSS  bool
}

func (s SignatureScheme) String() string {
	padding := ""
	switch {
	case s.PSS:
		padding = " PSS"
	case s.Key.Bits() > 0:
		padding = " PKCS #1 v1.5"
	}
	return fmt.Sprintf("%s%s with %v", s.Key, padding, s.Hash)
}

// SchemeOf is the scheme that a caller of Sign asks of a key: a backend need not
// ask whether its kind of key has it. The error wraps ErrDigest or
// ErrSignatureScheme.
func SchemeOf(key Algorithm, digest []byte, opts crypto.SignerOpts) (SignatureScheme, error) {
	if err := CheckDigest(digest, opts); err != nil {
		return SignatureScheme{}, err
	}
	s := SignatureScheme{Key: key, Hash: opts.HashFunc()}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok {
		return s, nil
	}
	s.PSS = true
	// RFC 8017 §9.1: KMSs offer the salt of the hash's length alone.
	if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != s.Hash.Size() {
		return SignatureScheme{}, fmt.Errorf("%w: RSA-PSS with a salt of another length than the hash's", ErrSignatureScheme)
	}
	if key.Bits() == 0 {
		return SignatureScheme{}, fmt.Errorf("%w: %v", ErrSignatureScheme, s)
	}
	return s, nil
}

// CheckDigest refuses hashes that aren't signed here and digests of another
// length. The error wraps ErrDigest.
func CheckDigest(digest []byte, opts crypto.SignerOpts) error {
	hash := opts.HashFunc()
	if hash != crypto.SHA256 && hash != crypto.SHA384 && hash != crypto.SHA512 {
		return fmt.Errorf("%w: hash %v isn't supported: SHA-256, SHA-384 or SHA-512", ErrDigest, hash)
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("%w: %d bytes, %v has %d", ErrDigest, len(digest), hash, hash.Size())
	}
	return nil
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

// ECDSASignature makes the Ecdsa-Sig-Value (RFC 3279 §2.2.3) of r‖s, each half
// of raw.
func ECDSASignature(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("an ECDSA signature of %d bytes isn't r and s", len(raw))
	}
	r, s := new(big.Int).SetBytes(raw[:len(raw)/2]), new(big.Int).SetBytes(raw[len(raw)/2:])
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}
