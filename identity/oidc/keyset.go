package oidc

import (
	"crypto"
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
