package kms

import (
	"crypto"
	"crypto/rsa"
	"fmt"
)

// scheme is one way to sign: a kind of key, a hash, and for RSA the padding.
type scheme struct {
	key  Algorithm
	hash crypto.Hash
	pss  bool
}

func (s scheme) String() string {
	padding := ""
	switch {
	case s.pss:
		padding = " PSS"
	case s.key == RSA2048 || s.key == RSA3072 || s.key == RSA4096:
		padding = " PKCS #1 v1.5"
	}
	return fmt.Sprintf("%s%s with %v", s.key, padding, s.hash)
}

// schemeOf is the scheme that a caller of Sign asks of a key. The error wraps
// ErrDigest or ErrScheme.
func schemeOf(key Algorithm, digest []byte, opts crypto.SignerOpts) (scheme, error) {
	if err := checkDigest(digest, opts); err != nil {
		return scheme{}, err
	}
	s := scheme{key: key, hash: opts.HashFunc()}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok {
		return s, nil
	}
	s.pss = true
	// RFC 8017 §9.1: KMSs offer the salt of the hash's length alone.
	if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != s.hash.Size() {
		return scheme{}, fmt.Errorf("%w: RSA-PSS with a salt of another length than the hash's", ErrScheme)
	}
	return s, nil
}
