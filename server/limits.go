package server

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// RateLimits bound how often certificates may be asked for. What is over a
// limit is answered with 429 RATE_EXCEEDED and Retry-After.
type RateLimits struct {
	// PerAddress is for one client address (IPv6: one /64), before a request is
	// read. A whole CI fleet may share one address behind a NAT: the default
	// keeps a single source of rubbish from taking the service, no more. Its
	// refusals are counted in metrics, not written to the audit trail.
	PerAddress Rate `yaml:"per_address"`
	// PerPrincipal is for one issuer and subject, once the token is verified.
	PerPrincipal Rate `yaml:"per_principal"`
	// PerIssuer is for all tokens of one issuer together, once verified. Off by
	// default: where there is one issuer it would be a limit on everybody.
	PerIssuer Rate `yaml:"per_issuer"`
	// LogReads is for what one client address (IPv6: one /64) reads of the logs that
	// are served here. A monitor that reads a million entries for the first time asks
	// for some 8,000 tiles, and stays within the default's burst.
	LogReads Rate `yaml:"log_reads"`
}

// Rate is a token bucket.
type Rate struct {
	// Rate is how many requests a second are let through in the long run; 0 sets no limit.
	Rate float64 `yaml:"rate"`
	// Burst is how many may come at once after a quiet time.
	Burst int `yaml:"burst"`
}

// defaultRateLimits are far above what honest clients do, and far below what
// two cores can take.
func defaultRateLimits() RateLimits {
	return RateLimits{
		PerAddress:   Rate{Rate: 200, Burst: 2000},
		PerPrincipal: Rate{Rate: 20, Burst: 500},
		PerIssuer:    Rate{Rate: 0, Burst: 5000},
		LogReads:     Rate{Rate: 500, Burst: 10000},
	}
}

func (l *RateLimits) check(path string, f *setting.Faults) {
	const mostRate, mostBurst = 1e6, 1_000_000
	for _, r := range []struct {
		field string
		rate  Rate
	}{{"per_address", l.PerAddress}, {"per_principal", l.PerPrincipal}, {"per_issuer", l.PerIssuer}, {"log_reads", l.LogReads}} {
		at := setting.Join(path, r.field)
		if v := r.rate.Rate; !(v >= 0 && v <= mostRate) {
			f.Add(setting.Join(at, "rate"), "%v is outside 0 to %d requests a second; 0 sets no limit", v, int(mostRate))
		}
		if b := r.rate.Burst; r.rate.Rate > 0 && (b < 1 || b > mostBurst) {
			f.Add(setting.Join(at, "burst"), "%d is outside 1 to %d", b, mostBurst)
		}
	}
}

// What a limit is on: the label of mayfly_rate_limited_total and the metadata of a refusal.
const (
	limitAddress   = "address"
	limitPrincipal = "principal"
	limitIssuer    = "issuer"
	limitReads     = "log_reads"
)

// maxCallers is how many callers of one kind are remembered. Whoever is
// forgotten begins with a full burst again, so that a flood from more addresses
// than this is not stopped here; it can't fill the memory either (about 4 MB a kind).
const maxCallers = 16 << 10

// limiters are the rate limits in force, and how much of them each caller has used.
type limiters struct {
	address   *buckets[netip.Prefix]
	reads     *buckets[netip.Prefix]
	principal *buckets[uint64] // by a keyed hash: subjects may be long
	issuer    *buckets[uint64]
	seed      maphash.Seed
}

// newLimiters makes limiters for c. Callers keep what they have used of limits
// that are the same as before; before may be nil.
func newLimiters(c RateLimits, before *limiters) *limiters {
	if before == nil {
		before = &limiters{seed: maphash.MakeSeed()}
	}
	return &limiters{
		address:   before.address.as(c.PerAddress),
		reads:     before.reads.as(c.LogReads),
		principal: before.principal.as(c.PerPrincipal),
		issuer:    before.issuer.as(c.PerIssuer),
		seed:      before.seed,
	}
}

// admit takes one request of an address from its limit, or says why not.
func (l *limiters) admit(client netip.Addr, now time.Time) *fault.Error {
	return exceeded(limitAddress, "this network address", l.address.take(network(client), now))
}

// read takes one read of an address from its limit, or says why not.
func (l *limiters) read(client netip.Addr, now time.Time) *fault.Error {
	return exceeded(limitReads, "this network address", l.reads.take(network(client), now))
}

// allow takes one request of a principal from its limit and its issuer's, or says why not.
func (l *limiters) allow(who identity.Principal, now time.Time) *fault.Error {
	if l.principal != nil {
		key := maphash.Comparable(l.seed, [2]string{who.Issuer(), who.Subject()})
		if f := exceeded(limitPrincipal, "this identity", l.principal.take(key, now)); f != nil {
			return f
		}
	}
	if l.issuer != nil {
		return exceeded(limitIssuer, "this identity's issuer", l.issuer.take(maphash.String(l.seed, who.Issuer()), now))
	}
	return nil
}

// exceeded is nil when there is nothing to wait for.
func exceeded(limit, whose string, wait time.Duration) *fault.Error {
	if wait <= 0 {
		return nil
	}
	return fault.New(fault.RateExceeded, "too many requests of %s; try again later", whose).With("limit", limit).After(wait)
}

// network is whom an address counts for: itself, or the /64 of an IPv6 address,
// which is the least that one customer gets (RFC 6177 §2).
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // no address at all: they count as one
		return netip.Prefix{}
	}
	return p
}

// buckets hold one token bucket each for the callers that came last. It is safe
// for concurrent use; a nil one limits nobody.
type buckets[K comparable] struct {
	rate Rate

	mu     sync.Mutex
	known  map[K]*list.Element
	recent *list.List // of *bucket[K], the last caller in front
}

type bucket[K comparable] struct {
	caller K
	tokens *rate.Limiter
}

// as is b if it has the rate r; else new buckets, or nil where r sets no limit.
func (b *buckets[K]) as(r Rate) *buckets[K] {
	switch {
	case r.Rate == 0:
		return nil
	case b != nil && b.rate == r:
		return b
	}
	return &buckets[K]{rate: r, known: make(map[K]*list.Element), recent: list.New()}
}

// take takes one token of the caller's. Without one it says how long it takes to get one.
func (b *buckets[K]) take(caller K, now time.Time) (wait time.Duration) {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tokens := b.of(caller)
	if tokens.AllowN(now, 1) {
		return 0
	}
	missing := (1 - tokens.TokensAt(now)) / b.rate.Rate
	return max(time.Duration(missing*float64(time.Second)), time.Millisecond)
}

// of finds the caller's bucket. A new caller's is full, and takes the place of
// whoever came the longest ago when there are too many.
func (b *buckets[K]) of(caller K) *rate.Limiter {
	if e, ok := b.known[caller]; ok {
		b.recent.MoveToFront(e)
		return e.Value.(*bucket[K]).tokens
	}
	if b.recent.Len() >= maxCallers {
		out := b.recent.Remove(b.recent.Back()).(*bucket[K])
		delete(b.known, out.caller)
	}
	fresh := &bucket[K]{caller: caller, tokens: rate.NewLimiter(rate.Limit(b.rate.Rate), b.rate.Burst)}
	b.known[caller] = b.recent.PushFront(fresh)
	return fresh.tokens
}
