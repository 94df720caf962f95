// Package wait waits for time to pass, but never longer than a context lasts.
package wait

import (
	"context"
	"time"
)

// For returns nil once d has passed, or the context's error as soon as ctx ends.
// It asks ctx also where d isn't positive, so that a loop of waits always ends.
func For(ctx context.Context, d time.Duration) error { return OrWoken[any](ctx, d, nil) }

// OrWoken is [For], but also returns nil when woken has a value for it.
func OrWoken[T any](ctx context.Context, d time.Duration, woken <-chan T) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-woken:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}
