package oidc

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// maxTries is how many keys are tried for one token, of those that its header
// may mean.
const maxTries = 8

// keySet is the keys of one issuer as they were fetched once: immutable.
type keySet struct {
	jwks
	fetched time.Time // when their fetch began: they are at least as new
}

// verify checks the signature of a token (RFC 7515 §5.2) with the keys that its header
// may mean: those with its kid or, where there is none with it, those without kid; for a
// token without kid, all that there are for its algorithm. known is false when a newer
// set may know better; the error is then what is to be said if it doesn't.
//
// The standard library does it on the token as it was split once. go-jose would
// parse the token a second time, and takes RSASSA-PSS with a salt of any length;
// it is the second opinion in the tests.
func (s *keySet) verify(t *Token) (known bool, err error) {
	known = t.KeyID != "" && slices.ContainsFunc(s.keys, func(k jwk) bool { return k.id == t.KeyID })
	if why := s.unusable[t.KeyID]; !known && t.KeyID != "" && why != "" {
		return false, fault.New(fault.IssuerKeyUnusable, "the identity token is signed with its issuer's key %s, which this CA can't use: %s; ask the CA's operators",
			claim.Quote(t.KeyID), why).With("dependency", "issuer")
	}
	id := ""
	if known {
		id = t.KeyID
	}
	signature, decodeErr := strict.DecodeString(t.signature)
	candidates := 0
	for i := range s.keys {
		k := &s.keys[i]
		if t.KeyID != "" && k.id != id || !slices.Contains(k.algorithms, t.Algorithm) {
			continue
		}
		if candidates++; candidates <= maxTries && decodeErr == nil && verifySignature(t.Algorithm, k.key, t.Signed, signature) {
			return true, nil
		}
	}
	text := "the identity token's signature doesn't verify with a key of its issuer"
	switch {
	case candidates == 0 && known:
		return true, fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not the one of its key")
	case candidates == 0:
		return false, fault.New(fault.TokenSignature, "the identity token is signed with a key that its issuer doesn't publish; get a new token")
	case candidates > maxTries:
		text = fmt.Sprintf("the identity token doesn't say which of %d keys of its issuer it is signed with (kid); at most %d are tried", candidates, maxTries)
	case known:
		text = "the identity token's signature doesn't verify with its issuer's key"
	}
	return known, fault.New(fault.TokenSignature, "%s", text).Because(errSignature)
}

// errSignature stands for every way in which a signature can be wrong: which of
// them it was is of use to nobody honest.
var errSignature = errors.New("no key verifies the signature")

// hashes are those of the algorithms, by the end of their names (RFC 7518 §3.1).
var hashes = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

// verifySignature takes one of [Algorithms]. A key of another type than the
// algorithm's verifies nothing.
func verifySignature(algorithm string, key crypto.PublicKey, signed string, signature []byte) bool {
	if algorithm == edDSA { // RFC 8037 §3.1
		key, ok := key.(ed25519.PublicKey)
		return ok && ed25519.Verify(key, []byte(signed), signature)
	}
	hash := hashes[algorithm[2:]]
	digest := pubkey.Digest(hash, []byte(signed))
	switch key := key.(type) {
	case *rsa.PublicKey:
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
		return ecdsa.Verify(key, digest, r, s)
	}
	return false
}
