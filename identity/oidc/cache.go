package identity

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
	// gather is how long a fetch for an unknown key waits for others that want
	// it too: it must begin after their arrival to say what they need to know.
	gather = 25 * time.Millisecond
	// maxWaiting is how many tokens wait for a fetch to be due; more are told
	// to come back.
	maxWaiting = 256
)

// source is where the keys of one issuer come from. A keyring asks it one thing
// at a time.
type source interface {
	// fetch gets the keys, and how long they may serve before they are asked
	// for again.
	fetch(ctx context.Context) (published, error)
}

// keyring holds the keys of one issuer and fetches them when they are needed:
// one fetch at a time, however many tokens wait for it.
type keyring struct {
	issuer  string
	source  source
	now     func() time.Time
	maxAge  time.Duration                  // older keys are not used
	fetched func(issuer string, err error) // told of every fetch

	keys atomic.Pointer[keyset]
	used atomic.Int64 // Unix seconds of the last token

	mu     sync.Mutex
	flight *flight       // the fetch under way, or soon to be
	last   *flight       // the last one that ended
	gap    time.Duration // from when it began to the next that a token causes
}

// flight is one fetch. What it brought may be read when done is closed.
type flight struct {
	done    chan struct{}
	paced   bool      // it waits for the gap
	waiting int       // tokens that wait for it to begin
	began   time.Time // zero until then
	err     error
}

// find gives the keys that may have made a token's signature. With warm keys it
// makes no request and waits for nothing. That the issuer has no such key is
// believed of a fetch that began after the token arrived, and of no other: the
// issuer may have published it a moment ago. The errors are *fault.Error: of
// kind Unauthenticated when the issuer has no such key, and IssuerUnavailable
// when that can't be known at the moment; or ctx's own.
func (k *keyring) find(ctx context.Context, id, algorithm string) (*candidates, error) {
	arrived := k.now()
	k.used.Store(arrived.Unix())
	if s := k.usable(arrived); s != nil {
		if keys, known, err := s.find(id, algorithm); known {
			if arrived.Sub(s.fetched) >= s.fresh {
				k.renew(ctx) // these keys serve until newer ones are here
			}
			return keys, err
		}
	}
	for {
		f, err := k.newer(ctx, arrived)
		if err != nil {
			return nil, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the issuer's keys: %w", context.Cause(ctx))
		}
		s := k.usable(k.now())
		if s != nil {
			if keys, known, err := s.find(id, algorithm); known {
				return keys, err
			}
		}
		switch {
		case f.err != nil || s == nil:
			return nil, unavailable(f.err, k.untilNext())
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
func (k *keyring) usable(now time.Time) *keyset {
	if s := k.keys.Load(); s != nil && now.Sub(s.fetched) < k.maxAge {
		return s
	}
	return nil
}

// newer gives the fetch that a token that arrived then has to wait for: the
// one under way, the last one if it began later, or a new one as soon as it is
// due. The error is for a token that would wait for too long.
func (k *keyring) newer(ctx context.Context, arrived time.Time) (*flight, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := k.wait()
	switch f := k.flight; {
	case f != nil && f.paced && f.began.IsZero() && f.waiting >= maxWaiting:
		return nil, unavailable(nil, wait)
	case f != nil:
		f.waiting++
		return f, nil
	case k.last != nil && !k.last.began.Before(arrived):
		return k.last, nil
	case wait > 0 && k.last.err != nil: // wait is zero before the first fetch
		return nil, unavailable(k.last.err, wait)
	}
	delay := wait
	if k.keys.Load() != nil {
		delay = max(delay, gather)
	}
	f := k.start(context.WithoutCancel(ctx), &flight{paced: wait > 0}, delay)
	f.waiting++
	return f, nil
}

// renew fetches in the background, if that is due.
func (k *keyring) renew(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flight == nil && k.wait() == 0 {
		k.start(context.WithoutCancel(ctx), &flight{}, 0)
	}
}

// refresh fetches now, whatever the last fetch was, and waits for it. It is
// for the background, which keeps its own pace.
func (k *keyring) refresh(ctx context.Context) error {
	k.mu.Lock()
	f := k.flight
	if f == nil {
		f = k.start(ctx, &flight{}, 0)
	}
	k.mu.Unlock()
	<-f.done // bounded by demandGap and fetchTimeout
	return f.err
}

// wait is how long it is until a token may cause a fetch. mu is held.
func (k *keyring) wait() time.Duration {
	if k.last == nil {
		return 0
	}
	since := k.now().Sub(k.last.began)
	return min(max(k.gap-since, 0), k.gap) // also when the clock was set back
}

func (k *keyring) untilNext() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wait()
}

// start begins a fetch after the delay. It goes on when the request that caused
// it is gone, since others wait for it, but at most for fetchTimeout. mu is held.
func (k *keyring) start(ctx context.Context, f *flight, delay time.Duration) *flight {
	f.done = make(chan struct{})
	k.flight = f
	go k.fly(ctx, f, delay)
	return f
}

func (k *keyring) fly(ctx context.Context, f *flight, delay time.Duration) {
	_ = wait.For(ctx, delay) // a fetch whose ctx has ended says so
	k.mu.Lock()
	f.began = k.now()
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	got, err := k.source.fetch(ctx)
	if err != nil {
		err = brief(err)
	} else {
		k.keys.Store(newKeyset(got.keys, f.began, got.fresh))
	}
	k.mu.Lock()
	f.err = err
	k.flight, k.last = nil, f
	if err == nil || k.gap == 0 {
		k.gap = demandGap
	} else {
		k.gap = min(2*k.gap, failureGap)
	}
	k.mu.Unlock()
	k.fetched(k.issuer, err)
	close(f.done)
}

// due is how long it is until the keys should be fetched again, at the pace of
// the background: a little before a token would find them old.
func (k *keyring) due() time.Duration {
	s := k.keys.Load()
	if s == nil {
		return 0
	}
	return max(s.fresh*9/10-k.now().Sub(s.fetched), 0)
}

func (k *keyring) status() IssuerStatus {
	s := IssuerStatus{Name: k.issuer}
	k.mu.Lock()
	if k.last != nil {
		s.Err = k.last.err
	}
	k.mu.Unlock()
	if keys := k.keys.Load(); keys != nil {
		s.KeysAge = k.now().Sub(keys.fetched)
		s.Ready = s.KeysAge < k.maxAge
	}
	return s
}
