package oidc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The pace of the fetches that tokens cause: those whose key isn't known, and
// those that find the keys old. An honest token signed with a new key waits for
// demandGap at the most, and a flood of made-up key ids costs the issuer one
// request in that time. Failures double the gap.
const (
	demandGap  = time.Second
	failureGap = 10 * time.Second // at most
	// gather is how long a fetch for an unknown key waits for other tokens that
	// want it too: only a fetch that begins after a token arrived can refuse it.
	gather = 25 * time.Millisecond
)

// cache holds the keys of one issuer (its JWKS) and fetches them when they are
// needed: one fetch at a time, however many tokens wait for it.
type cache struct {
	issuer  string
	source  func(context.Context) (jwks, error) // asked one thing at a time
	maxAge  time.Duration                       // older keys are not used
	pattern *patternKeys                        // whose issuer it is; nil for a configured one
	Options

	keys   atomic.Pointer[keySet]
	used   atomic.Int64 // Unix seconds of the last token
	proven atomic.Bool  // a token of this issuer was verified

	mu      sync.Mutex    // guards what follows
	current *fetch        // under way, or soon to be
	last    *fetch        // the last one that ended
	gap     time.Duration // from the last one's beginning to the next that a token causes
}

// fetch is one fetch of an issuer's keys. err may be read once done is closed.
type fetch struct {
	done  chan struct{}
	began time.Time // zero until then
	err   error
}

// verify checks the signature of a token. With warm keys it makes no request and
// waits for nothing.
//
// A token whose key the issuer doesn't publish is refused only after a fetch
// that began when the token was here already: an earlier one may have missed a
// key that the issuer has published since.
//
// The errors are *fault.Error: of kind Unauthenticated when no key of the issuer
// made the signature; IssuerUnavailable when that can't be known at the moment, and
// IssuerKeyUnusable when its key is one that we can't use; or ctx's own.
func (c *cache) verify(ctx context.Context, t *Token) error {
	arrived := c.Now()
	c.used.Store(arrived.Unix())
	if s, known, err := c.try(t, arrived); known {
		if arrived.Sub(s.fetched) >= s.fresh {
			c.renew(ctx) // these keys serve until newer ones are here
		}
		return err
	}
	shares := c.shares(ctx)
	if !c.Places.take(shares) {
		return fault.New(fault.IssuerUnavailable, "too many requests wait for the keys of the identity token's issuer; try again").
			With("dependency", "issuer").After(max(c.untilDue(), time.Second))
	}
	defer c.Places.leave(shares)
	for {
		f, err := c.newer(ctx, arrived)
		if err != nil {
			return err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the issuer's keys: %w", context.Cause(ctx))
		}
		s, known, refused := c.try(t, c.Now())
		switch {
		case known:
			return refused
		case f.err != nil || s == nil:
			return unavailable(f.err, c.untilDue())
		case !f.began.Before(arrived):
			return refused
		}
	}
}

// try checks a token with the keys that are here, unless they are too old: s is nil then.
func (c *cache) try(t *Token, now time.Time) (s *keySet, known bool, err error) {
	if s = c.keys.Load(); s == nil || now.Sub(s.fetched) >= c.maxAge {
		return nil, false, nil
	}
	if known, err = s.verify(t); known && err == nil && !c.proven.Load() {
		c.proven.Store(true)
	}
	return s, known, err
}

func unavailable(cause error, after time.Duration) error {
	f := fault.New(fault.IssuerUnavailable, "the keys of the identity token's issuer can't be fetched at the moment; try again")
	if _, unusable := errors.AsType[*unusableError](cause); unusable {
		f = fault.New(fault.IssuerKeyUnusable, "the identity token's issuer publishes no key that this CA can use; ask the CA's operators")
	}
	return f.With("dependency", "issuer").After(max(after, time.Second)).Because(cause)
}

// newer gives the fetch that a token that arrived then has to wait for: the
// one under way, the last one if it began later, or a new one as soon as it is
// due. The error is for a token that would wait for too long.
func (c *cache) newer(ctx context.Context, arrived time.Time) (*fetch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.untilDueLocked()
	switch f := c.current; {
	case f != nil:
		return f, nil
	case c.last != nil && !c.last.began.Before(arrived):
		return c.last, nil
	case due > 0 && c.last.err != nil: // due is zero before the first fetch
		return nil, unavailable(c.last.err, due)
	}
	delay := due
	if c.keys.Load() != nil {
		delay = max(delay, gather)
	}
	return c.startLocked(context.WithoutCancel(ctx), delay), nil
}

// renew fetches in the background, if that is due.
func (c *cache) renew(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil && c.untilDueLocked() == 0 {
		c.startLocked(context.WithoutCancel(ctx), 0)
	}
}

// refresh fetches now, whatever the last fetch was, and waits for it. It is
// for the background, which keeps its own pace.
func (c *cache) refresh(ctx context.Context) error {
	c.mu.Lock()
	f := c.current
	if f == nil {
		f = c.startLocked(ctx, 0)
	}
	c.mu.Unlock()
	<-f.done // bounded by demandGap and fetchTimeout
	return f.err
}

// untilDueLocked is how long it is until a token may cause a fetch.
func (c *cache) untilDueLocked() time.Duration {
	if c.last == nil {
		return 0
	}
	since := c.Now().Sub(c.last.began)
	return min(max(c.gap-since, 0), c.gap) // also when the clock was set back
}

func (c *cache) untilDue() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.untilDueLocked()
}

// startLocked begins a fetch after the delay. It goes on when the request that
// caused it is gone, since others wait for it, but at most for fetchTimeout.
func (c *cache) startLocked(ctx context.Context, delay time.Duration) *fetch {
	f := &fetch{done: make(chan struct{})}
	c.current = f
	go c.run(ctx, f, delay)
	return f
}

func (c *cache) run(ctx context.Context, f *fetch, delay time.Duration) {
	_ = wait.For(ctx, delay) // a fetch whose ctx has ended says so
	c.mu.Lock()
	f.began = c.Now()
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	got, err := c.source(ctx)
	told := Fetched{Issuer: c.issuer, Err: truncated(err)}
	if err == nil {
		if before := c.keys.Load(); before == nil || !slices.Equal(before.passedOver, got.passedOver) {
			told.PassedOver = got.passedOver
		}
		got.fresh = min(got.fresh, c.maxAge) // or no key would serve in between
		c.keys.Store(&keySet{got, f.began})
	}
	c.mu.Lock()
	f.err = told.Err
	c.current, c.last = nil, f
	if err == nil || c.gap == 0 {
		c.gap = demandGap
	} else {
		c.gap = min(2*c.gap, failureGap)
	}
	c.mu.Unlock()
	c.Fetched(told)
	close(f.done)
}

// refreshIn is how long it is until the background should fetch the keys again:
// a little before a token would find them old.
func (c *cache) refreshIn() time.Duration {
	s := c.keys.Load()
	if s == nil {
		return 0
	}
	return max(s.fresh*9/10-c.Now().Sub(s.fetched), 0)
}
