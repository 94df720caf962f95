package oidc

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Bounds on the issuers of one pattern: a token may name any of them before its
// signature is checked, so their number and pace are limited. Who makes up issuers
// pays for it himself: a client has so many new ones a second, and an issuer that
// ever verified a token is new no more.
const (
	maxIssuers     = 1024 // whose keys are kept
	maxUnproven    = 256  // of them, that never verified a token
	maxProven      = 4096 // that verified a token and whose keys aren't kept
	issuerIdle     = time.Hour
	clientRate     = 5  // new issuers a second that one client may name
	clientBurst    = 20 // and at once
	maxClients     = 4096
	newIssuerRate  = 50 // new issuers a second of all clients
	newIssuerBurst = 200
)

// patternKeys are the caches of the issuers that one pattern matched so far.
type patternKeys struct {
	newCache func(issuer string) *cache
	now      func() time.Time
	limiter  *rate.Limiter

	mu      sync.Mutex
	caches  map[string]*cache                           // by issuer
	clients *simplelru.LRU[netip.Prefix, *rate.Limiter] // those that named new issuers last
	proven  *simplelru.LRU[string, struct{}]            // issuers that verified a token and have no cache
}

func newPatternKeys(now func() time.Time, newCache func(issuer string) *cache) *patternKeys {
	p := &patternKeys{newCache: newCache, now: now, limiter: rate.NewLimiter(newIssuerRate, newIssuerBurst), caches: map[string]*cache{}}
	p.clients, _ = simplelru.NewLRU[netip.Prefix, *rate.Limiter](maxClients, nil) // it fails for a size below 1
	p.proven, _ = simplelru.NewLRU[string, struct{}](maxProven, nil)
	return p
}

// cache finds or makes the cache of an issuer that the pattern matches, for a
// token that the client sent.
func (p *patternKeys) cache(issuer string, client netip.Prefix) (*cache, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.caches[issuer]; c != nil {
		return c, nil
	}
	now := p.now()
	proven := p.proven.Remove(issuer)
	if !proven {
		if err := p.admitLocked(client, now); err != nil {
			return nil, err
		}
	}
	if len(p.caches) >= maxIssuers || !proven && p.unprovenLocked() >= maxUnproven {
		p.dropLocked(p.leastMissedLocked())
	}
	c := p.newCache(issuer)
	c.used.Store(now.Unix())
	c.proven.Store(proven)
	p.caches[issuer] = c
	return c, nil
}

// admitLocked lets a client name a new issuer, or says why not.
func (p *patternKeys) admitLocked(client netip.Prefix, now time.Time) error {
	own, ok := p.clients.Get(client)
	if !ok {
		own = rate.NewLimiter(clientRate, clientBurst)
		p.clients.Add(client, own)
	}
	switch {
	case !own.AllowN(now, 1):
		return fault.New(fault.RateExceeded, "too many identity tokens of this network address are of issuers that were never seen here; try again").
			With("limit", "new_issuers").After(time.Second)
	case !p.limiter.AllowN(now, 1):
		return fault.New(fault.IssuerUnavailable, "too many new issuers at once; try again").With("dependency", "issuer").After(time.Second)
	}
	return nil
}

func (p *patternKeys) unprovenLocked() (n int) {
	for _, c := range p.caches {
		if !c.proven.Load() {
			n++
		}
	}
	return n
}

// leastMissedLocked is the cache to drop: one whose issuer never verified a token
// before one that did, then one without keys, then the one that was used the
// longest ago.
func (p *patternKeys) leastMissedLocked() *cache {
	return slices.MinFunc(slices.Collect(maps.Values(p.caches)), func(a, b *cache) int {
		return cmp.Or(
			falseFirst(a.proven.Load(), b.proven.Load()),
			falseFirst(a.keys.Load() != nil, b.keys.Load() != nil),
			cmp.Compare(a.used.Load(), b.used.Load()))
	})
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// dropLocked forgets a cache, but not that its issuer verified a token.
func (p *patternKeys) dropLocked(c *cache) {
	delete(p.caches, c.issuer)
	if c.proven.Load() {
		p.proven.Add(c.issuer, struct{}{})
	}
}

// active drops the caches that are idle, and returns those that have keys.
func (p *patternKeys) active() []*cache {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := p.now().Add(-issuerIdle).Unix()
	var active []*cache
	for _, c := range p.caches {
		switch {
		case c.used.Load() < oldest:
			p.dropLocked(c)
		case c.keys.Load() != nil:
			active = append(active, c)
		}
	}
	return active
}
