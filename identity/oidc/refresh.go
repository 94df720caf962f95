package identity

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The pace of the background: keys that are here are fetched again before a
// token finds them old, and an issuer that fails is tried again ever more slowly.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
	// familyEvery is how often the issuers of a pattern are looked over.
	familyEvery = minFresh / 2
)

// Run fetches the keys of the exact issuers and keeps those, and the keys of
// the issuers that patterns matched, fresh. It returns nil when ctx ends, with
// nothing of its own left running. A Verifier works without it: a token then
// waits for the first fetch of its issuer's keys.
func (v *Verifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	begun := map[any]bool{} // entries for one issuer share its keys
	for _, i := range v.issuers {
		if id := i.background(); !begun[id] {
			begun[id] = true
			wg.Go(func() { i.keepFresh(ctx) })
		}
	}
	wg.Wait()
	return nil
}

// keepFresh keeps the keys of one entry fresh until ctx ends, and then closes
// its connections.
func (i *issuer) keepFresh(ctx context.Context) {
	if i.ring != nil {
		keepFresh(ctx, i.ring)
	} else {
		i.family.keepFresh(ctx)
	}
	if i.fetcher != nil {
		i.fetcher.client.CloseIdleConnections()
	}
}

// keepFresh looks over the issuers that the pattern matched so far.
func (f *family) keepFresh(ctx context.Context) {
	for wait.For(ctx, jitter(familyEvery)) == nil {
		for _, k := range f.active() {
			if ctx.Err() != nil {
				return
			}
			if k.due() == 0 {
				_ = k.refresh(ctx) // told to fetched, and tried again at the next turn
			}
		}
	}
}

func keepFresh(ctx context.Context, k *keyring) {
	retry := retryFirst
	for ctx.Err() == nil {
		var next time.Duration
		if err := k.refresh(ctx); err != nil {
			next, retry = retry, min(2*retry, retryMost)
		} else {
			next, retry = k.due(), retryFirst
		}
		if wait.For(ctx, jitter(next)) != nil {
			return
		}
	}
}

// jitter shortens d by up to a tenth, so that many instances don't ask at once.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1)) //nolint:gosec // no secret depends on it
}
