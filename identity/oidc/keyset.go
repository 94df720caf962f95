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
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// maxTries is how many keys are tried for one token, of those that its header
// may mean.
const maxTries = 8

// keySet is the keys of one issuer as they were fetched once: immutable.
type keySet struct {
	fetched    time.Time     // when their fetch began: they are at least as new
	fresh      time.Duration // after this they are fetched again
	passedOver []string
	unusable   map[string]string // why the key of an id was passed over
	ids        map[string]bool   // of the keys that can be used
	// byName finds the keys that a token's header may mean: those with its kid
	// that can make its algorithm. Under the empty kid stand those without one.
	byName map[keyName]*candidates
	// byAlgorithm is all keys for an algorithm, whatever their ids.
	byAlgorithm map[string]*candidates
}

type keyName struct{ id, algorithm string }

func newKeySet(from jwks, fetched time.Time) *keySet {
	s := &keySet{
		fetched: fetched, fresh: from.fresh, passedOver: from.passedOver, unusable: from.unusable,
		ids: make(map[string]bool, len(from.keys)), byName: make(map[keyName]*candidates), byAlgorithm: make(map[string]*candidates),
	}
	for _, k := range from.keys {
		s.ids[k.id] = true
		for _, algorithm := range k.algorithms {
			name := keyName{k.id, algorithm}
			s.byName[name] = s.byName[name].with(algorithm, k.key)
			s.byAlgorithm[algorithm] = s.byAlgorithm[algorithm].with(algorithm, k.key)
		}
	}
	return s
}

// with is c, which may be nil, with another key.
func (c *candidates) with(algorithm string, key crypto.PublicKey) *candidates {
	if c == nil {
		c = &candidates{algorithm: algorithm}
	}
	c.keys = append(c.keys, key)
	return c
}

// verify checks the signature of a token with the keys that its header may mean:
// those with its kid or, where there is none with it, those without kid; for a token
// without kid, all that there are for its algorithm. known is false when a newer set
// may know better; the error is then what is to be said if it doesn't.
func (s *keySet) verify(t *Token) (known bool, err error) {
	keys := s.byName[keyName{t.KeyID, t.Algorithm}]
	switch {
	case t.KeyID == "":
		keys = s.byAlgorithm[t.Algorithm]
	case keys != nil:
		known = true
	case s.ids[t.KeyID]:
		return true, fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not the one of its key")
	case s.unusable[t.KeyID] != "":
		return false, fault.New(fault.IssuerKeyUnusable, "the identity token is signed with its issuer's key %s, which this CA can't use: %s; ask the CA's operators",
			claim.Quote(t.KeyID), s.unusable[t.KeyID]).With("dependency", "issuer")
	default:
		keys = s.byName[keyName{"", t.Algorithm}]
	}
	if keys == nil {
		return false, fault.New(fault.TokenSignature, "the identity token is signed with a key that its issuer doesn't publish; get a new token")
	}
	switch err = keys.verify(t); {
	case err == nil:
		return true, nil
	case len(keys.keys) > maxTries:
		return known, fault.New(fault.TokenSignature, "the identity token doesn't say which of %d keys of its issuer it is signed with (kid); at most %d are tried", len(keys.keys), maxTries).Because(err)
	case known:
		return true, fault.New(fault.TokenSignature, "the identity token's signature doesn't verify with its issuer's key").Because(err)
	default:
		return false, fault.New(fault.TokenSignature, "the identity token's signature doesn't verify with a key of its issuer").Because(err)
	}
}

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
