package server

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// limit is one of the rate limits.
type limit struct {
	name    string // the label of mayfly_rate_limited_total, and the metadata of a refusal
	whose   string // requests are too many
	setting string // in the configuration
	rate    func(c *RateLimits) Rate
}

const thisAddress = "this network address"

var (
	limitAddress   = &limit{"address", thisAddress, "per_address", func(c *RateLimits) Rate { return c.PerAddress }}
	limitPrincipal = &limit{"principal", "this identity", "per_principal", func(c *RateLimits) Rate { return c.PerPrincipal }}
	limitIssuer    = &limit{"issuer", "this identity's issuer", "per_issuer", func(c *RateLimits) Rate { return c.PerIssuer }}
	limitStamps    = &limit{"timestamps", thisAddress, "timestamps", func(c *RateLimits) Rate { return c.Timestamps }}
	limitReads     = &limit{"log_reads", thisAddress, "log_reads", func(c *RateLimits) Rate { return c.LogReads }}

	rateLimits = []*limit{limitAddress, limitPrincipal, limitIssuer, limitStamps, limitReads}
)

// maxCallers is how many callers of one kind are remembered. Whoever is
// forgotten begins with a full burst again, so that a flood from more addresses
// than this is not stopped here; it can't fill the memory either (about 4 MB a kind).
const maxCallers = 16 << 10

// limiters are the rate limits in force, and how much of them each caller has used.
type limiters struct {
	seed    maphash.Seed
	buckets map[*limit]*buckets // none where nobody is limited
}

// newLimiters makes limiters for c. Callers keep what they have used of limits
// that are the same as before; before may be nil.
func newLimiters(c RateLimits, before *limiters) *limiters {
	l := &limiters{seed: maphash.MakeSeed(), buckets: map[*limit]*buckets{}}
	if before != nil {
		l.seed = before.seed
	}
	for _, limit := range rateLimits {
		r := limit.rate(&c)
		if r.Rate == 0 {
			continue
		}
		if before != nil && before.buckets[limit] != nil && before.buckets[limit].rate == r {
			l.buckets[limit] = before.buckets[limit]
			continue
		}
		callers, _ := simplelru.NewLRU[uint64, *rate.Limiter](maxCallers, nil) // it fails for a size below 1
		l.buckets[limit] = &buckets{rate: r, callers: callers}
	}
	return l
}

// address takes one request of an address from a limit, or says why not.
func (l *limiters) address(limit *limit, client netip.Addr, now time.Time) *fault.Error {
	return l.take(limit, maphash.Comparable(l.seed, network(client)), now)
}

// issuance takes one request of a principal from its limit and its issuer's, or
// says why not.
func (l *limiters) issuance(who identity.Principal, now time.Time) *fault.Error {
	if f := l.take(limitPrincipal, maphash.Comparable(l.seed, [2]string{who.Issuer(), who.Subject()}), now); f != nil {
		return f
	}
	return l.take(limitIssuer, maphash.String(l.seed, who.Issuer()), now)
}

// take takes one request of a caller's from a limit, or says why not, and how long it
// takes to get one. The caller is a keyed hash: subjects may be long. The bucket of who
// is new is full.
func (l *limiters) take(limit *limit, caller uint64, now time.Time) *fault.Error {
	b := l.buckets[limit]
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tokens, ok := b.callers.Get(caller)
	if !ok {
		tokens = rate.NewLimiter(rate.Limit(b.rate.Rate), b.rate.Burst)
		b.callers.Add(caller, tokens)
	}
	if tokens.AllowN(now, 1) {
		return nil
	}
	missing := (1 - tokens.TokensAt(now)) / b.rate.Rate
	wait := max(time.Duration(missing*float64(time.Second)), time.Millisecond)
	return fault.New(fault.RateExceeded, "too many requests of %s; try again later", limit.whose).With("limit", limit.name).After(wait)
}

// network is whom an address counts for: itself, or the /64 of an IPv6 address,
// which is the least that one customer gets (RFC 6177 §2).
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero one where there is no address at all: they count as one
	return p
}

// buckets hold one token bucket each for the callers that came last. It is safe
// for concurrent use.
type buckets struct {
	rate Rate

	mu      sync.Mutex
	callers *simplelru.LRU[uint64, *rate.Limiter] // guarded by mu
}

// retrySoon is how long a client waits before it asks again.
const retrySoon = time.Second

// inFlightLimit counts requests in flight, refuses what is too much, and lets a
// drain wait for the last one.
type inFlightLimit struct {
	mu        sync.Mutex
	closed    bool
	active    int
	issuances int
	most      int // issuances at once
	idle      chan struct{}
}

func newInFlightLimit(issuances int) *inFlightLimit {
	return &inFlightLimit{most: issuances, idle: make(chan struct{})}
}

// enter admits one request, or says why not: OVERLOADED, when it asks for a
// certificate and too many are in the making, or SHUTTING_DOWN. Every admitted
// request leaves.
func (l *inFlightLimit) enter(issues bool) *fault.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return shuttingDown()
	case issues && l.issuances >= l.most:
		return fault.New(fault.Overloaded, "too many requests are in progress; try again").After(retrySoon)
	}
	l.active++
	if issues {
		l.issuances++
	}
	return nil
}

func shuttingDown() *fault.Error {
	return fault.New(fault.ShuttingDown, "this instance is shutting down; try again").After(retrySoon)
}

// leave is the end of an admitted request.
func (l *inFlightLimit) leave(issues bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	if issues {
		l.issuances--
	}
	if l.closed && l.active == 0 {
		close(l.idle)
	}
}

// close refuses what comes from now on. The channel is closed when nothing is
// in flight any more.
func (l *inFlightLimit) close() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		if l.active == 0 {
			close(l.idle)
		}
	}
	return l.idle
}

// set says how many issuances may be in the making from now on. Those that are
// go on.
func (l *inFlightLimit) set(issuances int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = issuances
}

// draining reports whether l is closed.
func (l *inFlightLimit) draining() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// count is how many requests are being served.
func (l *inFlightLimit) count() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.active)
}

// What the process holds for clients, by what they can have of it. Each is what a
// running mayfly was seen to take at most, rounded up.
const (
	// connectionBytes is for a connection of HTTP/2 over TLS that is quiet: its
	// buffers, its goroutines, its header tables.
	connectionBytes = 52 << 10
	// headCopies is how often a head that is arriving is held: its buffer doubles. A
	// handshake that doesn't end takes as much: 64 KiB of a hello, in buffers that double.
	headCopies = 2
	// requestBytes is for a request: its goroutines, and the buffers of its answer.
	requestBytes = 32 << 10
	// bodyCopies is how often a body is held: as it came, as its fields, and as
	// what they decode to.
	bodyCopies = 3
	// callerBytes is for a caller that a rate limit remembers.
	callerBytes = 256
	// logReadBytes is what all reads of logs together hold (ctlog/embedded/read, MaxBytes).
	logReadBytes = 56 << 20
	// logBacklogBytes is what a log holds of entries that are durable or on their way, and
	// aren't in its tree yet (ctlog/embedded, maxBacklogBytes and three copies of a flush).
	logBacklogBytes = 4 << 20
	// ProcessBytes is what the process holds without any client: its heap, its
	// goroutines, the index of an embedded log, the keys of issuers.
	ProcessBytes = 64 << 20
)

// ClientBytes is the most that clients, whatever they do, can make the process and
// the kernel hold for them under these limits: the memory law of docs/limits.md.
// Together with ProcessBytes it belongs below the limit that the process runs under.
func (c *Config) ClientBytes() int {
	l := c.Limits
	requests := l.Issuances + waitingPlaces
	connections := 2*l.Connections + min(l.Connections, metricsConnections)
	connection := connectionBytes + headCopies*l.HeaderBytes + 2*sendBuffer // the kernel doubles it
	request := requestBytes + l.HeaderBytes + connectionWindow              // which is more than the kernel's receive buffer
	return connections*connection +
		(requests+turnedAway)*request +
		requests*bodyCopies*l.BodyBytes +
		len(rateLimits)*maxCallers*callerBytes +
		logReadBytes + logBacklogBytes
}
