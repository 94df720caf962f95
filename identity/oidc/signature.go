package oidc

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // SHA-256, for crypto.Hash
	_ "crypto/sha512" // SHA-384 and SHA-512, for crypto.Hash
	"errors"
	"math/big"
)

// candidates is the keys of one issuer that may have made a token's signature
// with one algorithm.
type candidates struct {
	algorithm string
	keys      []crypto.PublicKey
}

// errSignature stands for every way in which a signature can be wrong: which of
// them it was is of use to nobody honest.
var errSignature = errors.New("no key verifies the signature")

// verify checks the token's signature (RFC 7515 §5.2) with the first few of the
// keys, with the algorithm that they were chosen by and never with another.
//
// The standard library does it on the token as it was split once. go-jose would
// parse the token a second time, and takes RSASSA-PSS with a salt of any length;
// it is the second opinion in the tests.
func (c *candidates) verify(t *Token) error {
	if t.Algorithm != c.algorithm {
		return errSignature
	}
	signature, err := strict.DecodeString(t.signature)
	if err != nil {
		return errSignature
	}
	for _, key := range c.keys[:min(len(c.keys), maxTries)] {
		if verifySignature(t.Algorithm, key, t.Signed, signature) {
			return nil
		}
	}
	return errSignature
}

// verifySignature takes one of [Algorithms]. A key of another type than the
// algorithm's verifies nothing.
func verifySignature(algorithm string, key crypto.PublicKey, signed string, signature []byte) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		hash, digest := hashed(algorithm, signed)
		switch algorithm[:2] {
		case "RS": // RFC 7518 §3.3
			return rsa.VerifyPKCS1v15(key, hash, digest, signature) == nil
		case "PS": // RFC 7518 §3.5: the salt is as long as the hash
			return rsa.VerifyPSS(key, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}) == nil
		}
	case *ecdsa.PublicKey:
		size := (key.Params().BitSize + 7) / 8
		if algorithm[:2] != "ES" || len(signature) != 2*size { // RFC 7518 §3.4
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		_, digest := hashed(algorithm, signed)
		return ecdsa.Verify(key, digest, r, s)
	case ed25519.PublicKey:
		return algorithm == edDSA && ed25519.Verify(key, []byte(signed), signature) // RFC 8037 §3.1
	}
	return false
}

// hashed is a text's digest by the hash of an algorithm (RFC 7518 §3.1); EdDSA
// has a hash of its own.
func hashed(algorithm, text string) (crypto.Hash, []byte) {
	hash := crypto.SHA512
	switch algorithm[2:] {
	case "256":
		hash = crypto.SHA256
	case "384":
		hash = crypto.SHA384
	}
	h := hash.New()
	for piece := range pieces(text) {
		h.Write(piece)
	}
	return hash, h.Sum(nil)
}
