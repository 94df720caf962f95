package identity

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

// keyset is the keys of one issuer as fetched once: immutable.
type keyset struct {
	fetched time.Time     // when their fetch began: they are at least as new
	fresh   time.Duration // after this they are fetched again
	ids     map[string]bool
	// named finds the keys that a token's header may mean: those with its kid
	// that can make its algorithm, all of this issuer.
	named map[keyName]*candidates
	// unnamed is for tokens without kid: allowed where there is one key only
	// (OpenID Connect Core §10.1).
	unnamed map[string]*candidates
}

type keyName struct{ id, algorithm string }

func newKeyset(keys []jose.JSONWebKey, fetched time.Time, fresh time.Duration) *keyset {
	s := &keyset{
		fetched: fetched,
		fresh:   fresh,
		ids:     make(map[string]bool, len(keys)),
		named:   make(map[keyName]*candidates),
		unnamed: make(map[string]*candidates),
	}
	for i := range keys {
		k := &keys[i]
		s.ids[k.KeyID] = true
		for _, algorithm := range algorithmsOf(k) {
			name := keyName{k.KeyID, algorithm}
			if s.named[name] == nil {
				s.named[name] = &candidates{algorithm: algorithm}
			}
			s.named[name].keys = append(s.named[name].keys, k.Key)
			if s.unnamed[algorithm] == nil {
				s.unnamed[algorithm] = &candidates{algorithm: algorithm}
			}
			s.unnamed[algorithm].keys = append(s.unnamed[algorithm].keys, k.Key)
		}
	}
	return s
}

// find gives the keys to try. known is false when the set has none with the
// token's kid, so that a newer set may have.
func (s *keyset) find(id, algorithm string) (keys *candidates, known bool, err error) {
	if id == "" {
		keys := s.unnamed[algorithm]
		if keys != nil && len(keys.keys) > 1 {
			return nil, true, fault.New(fault.TokenSignature, "the identity token's header has no kid and its issuer has several keys; its signature can't be checked")
		}
		return keys, keys != nil, nil
	}
	if !s.ids[id] {
		return nil, false, nil
	}
	if keys := s.named[keyName{id, algorithm}]; keys != nil {
		return keys, true, nil
	}
	return nil, true, fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not the one of its key")
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
	switch {
	case k.Algorithm == "":
		return can
	case slices.Contains(can, k.Algorithm):
		return []string{k.Algorithm}
	default:
		return nil
	}
}
