package oidc

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The pace of the background: keys that are here are fetched again before a
// token finds them old, and an issuer that fails is tried again ever more slowly.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
	// patternEvery is how often the issuers of a pattern are looked over.
	patternEvery = minFresh / 2
	// refreshAtOnce is how many issuers of a pattern are asked at once.
	refreshAtOnce = 8
)

// Run fetches the keys of the configured issuer and keeps them fresh, or those
// of the issuers that the pattern matched so far, until ctx ends. Nothing of its
// own is left running then, and the connections are closed.
func (k *Keys) Run(ctx context.Context) {
	if k.exact != nil {
		k.exact.keepFresh(ctx)
	} else {
		k.pattern.keepFresh(ctx)
	}
	if k.fetcher != nil {
		k.fetcher.client.CloseIdleConnections()
	}
}

func (p *patternKeys) keepFresh(ctx context.Context) {
	for wait.For(ctx, jitter(patternEvery)) == nil {
		var turn errgroup.Group
		turn.SetLimit(refreshAtOnce) // one that hangs doesn't keep the others waiting
		for _, c := range p.active() {
			turn.Go(func() error {
				if ctx.Err() == nil && c.refreshIn() == 0 {
					_ = c.refresh(ctx) // Options.Fetched is told, and the next turn tries again
				}
				return nil
			})
		}
		_ = turn.Wait() // nil: see above
	}
}

func (c *cache) keepFresh(ctx context.Context) {
	retry := retryFirst
	for ctx.Err() == nil {
		var next time.Duration
		if err := c.refresh(ctx); err != nil {
			next, retry = retry, min(2*retry, retryMost)
		} else {
			next, retry = c.refreshIn(), retryFirst
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
