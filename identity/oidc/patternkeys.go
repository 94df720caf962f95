package oidc

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Bounds on the issuers of one pattern: a token may name any of them before
// its signature is checked, so their number and pace are limited.
const (
	maxIssuers    = 1024 // whose keys are kept
	newIssuerRate = 5    // new ones a second
	newIssuerMost = 20   // new ones at once
	issuerIdle    = time.Hour
)

// patternKeys are the caches of the issuers that one pattern matched so far.
type patternKeys struct {
	newCache func(issuer string) *cache
	now      func() time.Time
	limiter  *rate.Limiter

	mu     sync.Mutex
	caches map[string]*cache // by issuer
}

func newPatternKeys(now func() time.Time, newCache func(issuer string) *cache) *patternKeys {
	return &patternKeys{newCache: newCache, now: now, limiter: rate.NewLimiter(newIssuerRate, newIssuerMost), caches: map[string]*cache{}}
}

// cache finds or makes the cache of an issuer that the pattern matches.
func (p *patternKeys) cache(issuer string) (*cache, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.caches[issuer]; c != nil {
		return c, nil
	}
	now := p.now()
	if !p.limiter.AllowN(now, 1) {
		return nil, fault.New(fault.IssuerUnavailable, "too many new issuers at once; try again").With("dependency", "issuer").After(time.Second)
	}
	if len(p.caches) >= maxIssuers {
		p.evictLocked()
	}
	c := p.newCache(issuer)
	c.used.Store(now.Unix())
	p.caches[issuer] = c
	return c, nil
}

// evictLocked drops the cache that is missed least: one that never got keys
// before one that did, then the one that was used the longest ago.
func (p *patternKeys) evictLocked() {
	victim := slices.MinFunc(slices.Collect(maps.Values(p.caches)), func(a, b *cache) int {
		if aCold, bCold := a.keys.Load() == nil, b.keys.Load() == nil; aCold != bCold {
			if aCold {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.used.Load(), b.used.Load())
	})
	delete(p.caches, victim.issuer)
}

// active drops the caches that are idle, and returns those that have keys.
func (p *patternKeys) active() []*cache {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := p.now().Add(-issuerIdle).Unix()
	var active []*cache
	for issuer, c := range p.caches {
		switch {
		case c.used.Load() < oldest:
			delete(p.caches, issuer)
		case c.keys.Load() != nil:
			active = append(active, c)
		}
	}
	return active
}
