package oidc

import (
	"context"
	"net/netip"
	"sync"
)

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
	p := &Places{taken: make(map[any]int)}
	p.Resize(requests)
	return p
}

// Resize says how many requests the CA serves at once from now on.
func (p *Places) Resize(requests int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests = requests; requests == 0 {
		p.requests = defaultRequests
	}
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
	client := struct {
		of   *patternKeys
		from netip.Prefix
	}{c.pattern, clientOf(ctx)}
	return []share{all, {c.pattern, partOfIssuer}, {client, partOfClient}}
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
