package oidc

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// RSA moduli that are accepted, in bits (RFC 7518 §3.3; above, one check gets slow).
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// keySet is the keys of one issuer as they were fetched once: immutable.
type keySet struct {
	fetched time.Time     // when their fetch began: they are at least as new
	fresh   time.Duration // after this they are fetched again
	ids     map[string]bool
	// byName finds the keys that a token's header may mean: those with its kid
	// that can make its algorithm. Under the empty kid stand all keys for the
	// algorithm.
	byName map[keyName]*candidates
}

type keyName struct{ id, algorithm string }

func newKeySet(keys []jose.JSONWebKey, fetched time.Time, fresh time.Duration) *keySet {
	s := &keySet{fetched: fetched, fresh: fresh, ids: make(map[string]bool, len(keys)), byName: make(map[keyName]*candidates)}
	add := func(id, algorithm string, k *jose.JSONWebKey) {
		name := keyName{id, algorithm}
		if s.byName[name] == nil {
			s.byName[name] = &candidates{algorithm: algorithm}
		}
		s.byName[name].keys = append(s.byName[name].keys, k.Key)
	}
	for i := range keys {
		k := &keys[i]
		s.ids[k.KeyID] = true
		for _, algorithm := range algorithmsOf(k) {
			add("", algorithm, k)
			if k.KeyID != "" {
				add(k.KeyID, algorithm, k)
			}
		}
	}
	return s
}

// find gives the keys to try. known is false when the set has none with the
// token's kid, so that a newer set may have. A token without kid is accepted
// where the issuer has one key for its algorithm (OpenID Connect Core §10.1).
func (s *keySet) find(id, algorithm string) (keys *candidates, known bool, err error) {
	keys = s.byName[keyName{id, algorithm}]
	switch {
	case id == "" && keys != nil && len(keys.keys) > 1:
		return nil, true, fault.New(fault.TokenSignature, "the identity token's header has no kid and its issuer has several keys; its signature can't be checked")
	case keys != nil:
		return keys, true, nil
	case id == "" || !s.ids[id]:
		return nil, false, nil
	default:
		return nil, true, fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not the one of its key")
	}
}

// algorithmsOf lists the algorithms that a key may verify: all that its type
// can, or the one that it names; none for a key that we don't use.
func algorithmsOf(k *jose.JSONWebKey) []string {
	if k.Use != "" && k.Use != "sig" {
		return nil
	}
	var can []string
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n >= minRSABits && n <= maxRSABits {
			can = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	case *ecdsa.PublicKey:
		switch key.Curve { // RFC 7518 §3.4: one curve an algorithm
		case elliptic.P256():
			can = []string{"ES256"}
		case elliptic.P384():
			can = []string{"ES384"}
		case elliptic.P521():
			can = []string{"ES512"}
		}
	case ed25519.PublicKey:
		can = []string{"EdDSA"}
	}
	if k.Algorithm == "" {
		return can
	}
	return slices.DeleteFunc(can, func(a string) bool { return a != k.Algorithm })
}
