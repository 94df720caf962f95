package oidc

import (
	"cmp"
	"context"
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
	unproven := 0
	for _, c := range p.caches {
		if !c.proven.Load() {
			unproven++
		}
	}
	if len(p.caches) >= maxIssuers || !proven && unproven >= maxUnproven {
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

// leastMissedLocked is the cache to drop: one whose issuer never verified a token
// before one that did, then one without keys, then the one that was used the
// longest ago.
func (p *patternKeys) leastMissedLocked() *cache {
	return slices.MinFunc(slices.Collect(maps.Values(p.caches)), func(a, b *cache) int {
		return cmp.Or(a.worth()-b.worth(), cmp.Compare(a.used.Load(), b.used.Load()))
	})
}

func (c *cache) worth() (n int) {
	if c.proven.Load() {
		n += 2
	}
	if c.keys.Load() != nil {
		n++
	}
	return n
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

// defaultRequests is what a CA serves at once unless it is told.
const defaultRequests = 256

// Places bound how many tokens wait for issuers' keys at once, whatever they wait
// for: discovery, keys, or a key that isn't known yet. Whoever waits holds one of
// the requests that the CA serves at once, and anybody can make a token that has to
// wait, since it isn't verified yet. So an issuer that hangs must leave the most of
// them to others. Places are safe for concurrent use.
type Places struct {
	mu       sync.Mutex
	requests int
	taken    map[any]int // by holder
}

// NewPlaces makes the places of a CA that serves so many requests at once; 0
// means 256.
func NewPlaces(requests int) *Places {
	return &Places{requests: cmp.Or(requests, defaultRequests), taken: make(map[any]int)}
}

// Resize says how many requests the CA serves at once from now on.
func (p *Places) Resize(requests int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = cmp.Or(requests, defaultRequests)
}

// share is the part of all requests that a holder may have waiting.
type share struct {
	holder any
	one    int // one in so many
}

// The parts: half of the requests never wait for keys, and one issuer has half of
// the other half. Members of a pattern that never verified a token have as much
// together, and one client no more than half of that.
const (
	partOfAll    = 2
	partOfIssuer = 4
	partOfClient = 8
)

// take takes a place out of every share, or none.
func (p *Places) take(shares []share) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range shares {
		if p.taken[s.holder] >= max(p.requests/s.one, 1) {
			return false
		}
	}
	for _, s := range shares {
		p.taken[s.holder]++
	}
	return true
}

// leave gives back what take took.
func (p *Places) leave(shares []share) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range shares {
		if p.taken[s.holder]--; p.taken[s.holder] == 0 {
			delete(p.taken, s.holder)
		}
	}
}

// shares is what a token that waits for c takes a place out of.
func (c *cache) shares(ctx context.Context) []share {
	all := share{nil, partOfAll}
	if c.pattern == nil || c.proven.Load() {
		return []share{all, {c, partOfIssuer}}
	}
	return []share{all, {c.pattern, partOfIssuer}, {[2]any{c.pattern, clientOf(ctx)}, partOfClient}}
}

type clientKey struct{}

// WithClient returns a context that carries the network that a request came from.
// It counts where what a token says can't be believed yet. Requests without one
// count as one client's.
func WithClient(ctx context.Context, from netip.Prefix) context.Context {
	return context.WithValue(ctx, clientKey{}, from)
}

func clientOf(ctx context.Context) netip.Prefix {
	from, _ := ctx.Value(clientKey{}).(netip.Prefix)
	return from
}
