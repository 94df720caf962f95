package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// How old keys may be. A key that its issuer removed stops working within
// refreshAfter while the issuer can be reached, and within maxKeysAge at most.
const (
	refreshAfter = 10 * time.Minute // keys are fetched again, in the background
	maxKeysAge   = 6 * time.Hour    // keys are no longer used when that keeps failing
	// fetchInterval is the least time between two fetches that tokens cause.
	fetchInterval = 10 * time.Second
)

// RSA moduli that are accepted, in bits (RFC 7518 §3.3; above, one check gets slow).
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// keyset is the keys of one issuer as fetched once: immutable.
type keyset struct {
	fetched time.Time
	ids     map[string]bool
	// named finds the keys that a token's header may mean: those with its kid
	// that can make its algorithm, all of this issuer.
	named map[keyName]*candidates
	// unnamed is for tokens without kid: allowed where there is one key only
	// (OpenID Connect Core §10.1).
	unnamed map[string]*candidates
}

type keyName struct{ id, algorithm string }

func newKeyset(keys []jose.JSONWebKey, fetched time.Time) *keyset {
	s := &keyset{
		fetched: fetched,
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

// keyring holds the keys of one issuer and fetches them when they are needed:
// one fetch at a time, however many tokens wait for it.
type keyring struct {
	issuer  string
	fetcher *fetcher
	now     func() time.Time
	fetched func(issuer string, err error) // told of every fetch

	keys atomic.Pointer[keyset]
	used atomic.Int64 // Unix seconds of the last token

	mu     sync.Mutex
	flight *flight   // the fetch under way
	tried  time.Time // when the last fetch began
	err    error     // how it ended
	jwks   string    // where the keys are, once discovered
}

// flight is one fetch; err may be read when done is closed.
type flight struct {
	done chan struct{}
	err  error
}

// find gives the keys that may have made a token's signature. With warm keys it
// makes no request and waits for nothing. The errors are *fault.Error: of kind
// Unauthenticated when the issuer has no such key, and IssuerUnavailable when
// that can't be known; or ctx's own.
func (k *keyring) find(ctx context.Context, id, algorithm string) (*candidates, error) {
	now := k.now()
	k.used.Store(now.Unix())
	s := k.keys.Load()
	if s != nil && now.Sub(s.fetched) < maxKeysAge {
		if keys, known, err := s.find(id, algorithm); known {
			if now.Sub(s.fetched) >= refreshAfter {
				k.start(ctx, false) // these keys serve until newer ones are here
			}
			return keys, err
		}
	}
	f := k.start(ctx, false)
	if f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the issuer's keys: %w", context.Cause(ctx))
		}
	}
	return k.again(id, algorithm)
}

// again looks once more, after a fetch or when it is too soon for one.
func (k *keyring) again(id, algorithm string) (*candidates, error) {
	now := k.now()
	s := k.keys.Load()
	k.mu.Lock()
	failure, wait := k.err, k.tried.Add(fetchInterval).Sub(now)
	k.mu.Unlock()
	usable := s != nil && now.Sub(s.fetched) < maxKeysAge
	if usable {
		if keys, known, err := s.find(id, algorithm); known {
			return keys, err
		}
	}
	if !usable || failure != nil {
		return nil, fault.New(fault.IssuerUnavailable, "the keys of the identity token's issuer can't be fetched at the moment; try again").
			With("dependency", "issuer").After(max(wait, time.Second)).Because(failure)
	}
	return nil, fault.New(fault.TokenSignature, "the identity token is signed with a key that its issuer doesn't publish; get a new token")
}

// start begins a fetch, or joins the one under way. It returns nil when the
// last one began less than fetchInterval ago, unless forced. The fetch goes on
// when the request that caused it is gone, since others wait for it, but at
// most for fetchTimeout.
func (k *keyring) start(ctx context.Context, force bool) *flight {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if k.flight != nil {
		return k.flight
	}
	if !force {
		if since := now.Sub(k.tried); !k.tried.IsZero() && since >= 0 && since < fetchInterval {
			return nil
		}
		ctx = context.WithoutCancel(ctx)
	}
	f := &flight{done: make(chan struct{})}
	k.flight, k.tried = f, now
	go k.fly(ctx, f, k.jwks)
	return f
}

// fly fetches and publishes the keys. now is taken before the request: the
// keys are at least as new as that.
func (k *keyring) fly(ctx context.Context, f *flight, jwks string) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	began := k.now()
	jwks, keys, err := k.fetch(ctx, jwks)
	if err != nil {
		err = brief(err)
		jwks = "" // it may have moved: discover it again
	} else {
		k.keys.Store(newKeyset(keys, began))
	}
	k.mu.Lock()
	k.flight, k.err, k.jwks = nil, err, jwks
	k.mu.Unlock()
	k.fetched(k.issuer, err)
	f.err = err
	close(f.done)
}

func (k *keyring) fetch(ctx context.Context, jwks string) (string, []jose.JSONWebKey, error) {
	if jwks == "" {
		var err error
		if jwks, err = k.fetcher.discover(ctx, k.issuer); err != nil {
			return "", nil, err
		}
	}
	keys, err := k.fetcher.keys(ctx, jwks)
	return jwks, keys, err
}

// refresh fetches now, whatever the last fetch was, and waits for it. It is
// for the background, which keeps its own pace.
func (k *keyring) refresh(ctx context.Context) error {
	f := k.start(ctx, true)
	<-f.done // bounded by fetchTimeout
	return f.err
}

func (k *keyring) status() IssuerStatus {
	k.mu.Lock()
	err := k.err
	k.mu.Unlock()
	s := IssuerStatus{Name: k.issuer, Err: err}
	if keys := k.keys.Load(); keys != nil {
		s.KeysAge = k.now().Sub(keys.fetched)
		s.Ready = s.KeysAge < maxKeysAge
	}
	return s
}
