package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // SHA-256, for crypto.Hash
	_ "crypto/sha512" // SHA-384 and SHA-512, for crypto.Hash
	"errors"
	"math/big"
	"sync"

	"github.com/coreos/go-oidc/v3/oidc"
)

// candidates is the keys of one issuer that may have made a token's signature
// with one algorithm. A go-oidc verifier can use it as its key set; our own
// way, check, doesn't split and decode the token a second time.
type candidates struct {
	algorithm string
	keys      []crypto.PublicKey
}

var _ oidc.KeySet = (*candidates)(nil)

// errSignature is the one outcome of a check that fails: which of the ways it
// failed in is of use to nobody honest.
var errSignature = errors.New("no key verifies the signature")

// VerifySignature checks a compact JWS and returns its payload.
func (c *candidates) VerifySignature(_ context.Context, token string) ([]byte, error) {
	t, err := peek(token)
	if err != nil {
		return nil, err
	}
	if err := c.check(t); err != nil {
		return nil, err
	}
	return []byte(t.payload), nil
}

// check verifies the signature over what t was read from (RFC 7515 §5.2): with
// the algorithm that the keys were chosen by, never with another.
func (c *candidates) check(t unverified) error {
	if t.algorithm != c.algorithm {
		return errSignature
	}
	signature, err := strict.DecodeString(t.signature)
	if err != nil {
		return errSignature
	}
	for _, key := range c.keys {
		if verifySignature(t.algorithm, key, t.input, signature) {
			return nil
		}
	}
	return errSignature
}

// hashOf is the hash of an algorithm (RFC 7518 §3.1); EdDSA has its own.
func hashOf(algorithm string) crypto.Hash {
	switch algorithm[2:] {
	case "256":
		return crypto.SHA256
	case "384":
		return crypto.SHA384
	default:
		return crypto.SHA512
	}
}

// verifySignature takes an algorithm of defaultAlgorithms. A key of another
// type than the algorithm's verifies nothing.
func verifySignature(algorithm string, key crypto.PublicKey, input string, signature []byte) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch hash := hashOf(algorithm); algorithm[:2] {
		case "RS": // RFC 7518 §3.3
			return rsa.VerifyPKCS1v15(key, hash, digest(hash, input), signature) == nil
		case "PS": // RFC 7518 §3.5: the salt is as long as the hash
			return rsa.VerifyPSS(key, hash, digest(hash, input), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}) == nil
		}
	case *ecdsa.PublicKey:
		size := (key.Params().BitSize + 7) / 8
		if algorithm[:2] != "ES" || len(signature) != 2*size { // RFC 7518 §3.4
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(key, digest(hashOf(algorithm), input), r, s)
	case ed25519.PublicKey:
		return algorithm == "EdDSA" && ed25519.Verify(key, []byte(input), signature) // RFC 8037 §3.1
	}
	return false
}

// pieces are lent to digest, which would copy each token otherwise.
var pieces = sync.Pool{New: func() any { return new([1024]byte) }}

func digest(hash crypto.Hash, input string) []byte {
	h := hash.New()
	piece, ok := pieces.Get().(*[1024]byte)
	if !ok {
		piece = new([1024]byte)
	}
	defer pieces.Put(piece)
	for input != "" {
		n := copy(piece[:], input)
		h.Write(piece[:n])
		input = input[n:]
	}
	return h.Sum(nil)
}
