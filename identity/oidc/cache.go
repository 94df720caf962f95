package oidc

import (
	"context"
	"fmt"
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
	// maxWaiting is how many tokens wait for a fetch to be due; more are told
	// to come back.
	maxWaiting = 256
)

// cache holds the keys of one issuer (its JWKS) and fetches them when they are
// needed: one fetch at a time, however many tokens wait for it.
type cache struct {
	issuer  string
	source  jwksSource
	now     func() time.Time
	maxAge  time.Duration                  // older keys are not used
	fetched func(issuer string, err error) // told of every fetch

	keys atomic.Pointer[keySet]
	used atomic.Int64 // Unix seconds of the last token

	mu      sync.Mutex    // guards what follows
	current *fetch        // under way, or soon to be
	last    *fetch        // the last one that ended
	gap     time.Duration // from the last one's beginning to the next that a token causes
}

// fetch is one fetch of an issuer's keys. err may be read once done is closed.
type fetch struct {
	done    chan struct{}
	paced   bool      // it waits for the gap
	waiting int       // tokens that wait for it to begin
	began   time.Time // zero until then
	err     error
}

// find gives the keys that may have made a token's signature. With warm keys it
// makes no request and waits for nothing.
//
// A token whose key the issuer doesn't publish is refused only after a fetch
// that began when the token was here already: an earlier one may have missed a
// key that the issuer has published since.
//
// The errors are *fault.Error: of kind Unauthenticated when the issuer has no
// such key, and IssuerUnavailable when that can't be known at the moment; or
// ctx's own.
func (c *cache) find(ctx context.Context, id, algorithm string) (*candidates, error) {
	arrived := c.now()
	c.used.Store(arrived.Unix())
	if s := c.usable(arrived); s != nil {
		if keys, known, err := s.find(id, algorithm); known {
			if arrived.Sub(s.fetched) >= s.fresh {
				c.renew(ctx) // these keys serve until newer ones are here
			}
			return keys, err
		}
	}
	for {
		f, err := c.newer(ctx, arrived)
		if err != nil {
			return nil, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the issuer's keys: %w", context.Cause(ctx))
		}
		s := c.usable(c.now())
		if s != nil {
			if keys, known, err := s.find(id, algorithm); known {
				return keys, err
			}
		}
		switch {
		case f.err != nil || s == nil:
			return nil, unavailable(f.err, c.untilDue())
		case !f.began.Before(arrived):
			return nil, fault.New(fault.TokenSignature, "the identity token is signed with a key that its issuer doesn't publish; get a new token")
		}
	}
}

func unavailable(cause error, after time.Duration) error {
	return fault.New(fault.IssuerUnavailable, "the keys of the identity token's issuer can't be fetched at the moment; try again").
		With("dependency", "issuer").After(max(after, time.Second)).Because(cause)
}

// usable is the keys, if they are here and not too old.
func (c *cache) usable(now time.Time) *keySet {
	if s := c.keys.Load(); s != nil && now.Sub(s.fetched) < c.maxAge {
		return s
	}
	return nil
}

// newer gives the fetch that a token that arrived then has to wait for: the
// one under way, the last one if it began later, or a new one as soon as it is
// due. The error is for a token that would wait for too long.
func (c *cache) newer(ctx context.Context, arrived time.Time) (*fetch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.untilDueLocked()
	switch f := c.current; {
	case f != nil && f.paced && f.began.IsZero() && f.waiting >= maxWaiting:
		return nil, unavailable(nil, due)
	case f != nil:
		f.waiting++
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
	f := c.startLocked(context.WithoutCancel(ctx), &fetch{paced: due > 0, waiting: 1}, delay)
	return f, nil
}

// renew fetches in the background, if that is due.
func (c *cache) renew(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil && c.untilDueLocked() == 0 {
		c.startLocked(context.WithoutCancel(ctx), new(fetch), 0)
	}
}

// refresh fetches now, whatever the last fetch was, and waits for it. It is
// for the background, which keeps its own pace.
func (c *cache) refresh(ctx context.Context) error {
	c.mu.Lock()
	f := c.current
	if f == nil {
		f = c.startLocked(ctx, new(fetch), 0)
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
	since := c.now().Sub(c.last.began)
	return min(max(c.gap-since, 0), c.gap) // also when the clock was set back
}

func (c *cache) untilDue() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.untilDueLocked()
}

// startLocked begins a fetch after the delay. It goes on when the request that
// caused it is gone, since others wait for it, but at most for fetchTimeout.
func (c *cache) startLocked(ctx context.Context, f *fetch, delay time.Duration) *fetch {
	f.done = make(chan struct{})
	c.current = f
	go c.run(ctx, f, delay)
	return f
}

func (c *cache) run(ctx context.Context, f *fetch, delay time.Duration) {
	_ = wait.For(ctx, delay) // a fetch whose ctx has ended says so
	c.mu.Lock()
	f.began = c.now()
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	got, err := c.source.fetch(ctx)
	if err != nil {
		err = truncated(err)
	} else {
		c.keys.Store(newKeySet(got.keys, f.began, got.fresh))
	}
	c.mu.Lock()
	f.err = err
	c.current, c.last = nil, f
	if err == nil || c.gap == 0 {
		c.gap = demandGap
	} else {
		c.gap = min(2*c.gap, failureGap)
	}
	c.mu.Unlock()
	c.fetched(c.issuer, err)
	close(f.done)
}

// refreshIn is how long it is until the background should fetch the keys again:
// a little before a token would find them old.
func (c *cache) refreshIn() time.Duration {
	s := c.keys.Load()
	if s == nil {
		return 0
	}
	return max(s.fresh*9/10-c.now().Sub(s.fetched), 0)
}

func (c *cache) status() Status {
	s := Status{Name: c.issuer}
	c.mu.Lock()
	if c.last != nil {
		s.Err = c.last.err
	}
	c.mu.Unlock()
	if keys := c.keys.Load(); keys != nil {
		s.KeysAge = c.now().Sub(keys.fetched)
		s.Ready = s.KeysAge < c.maxAge
	}
	return s
}
