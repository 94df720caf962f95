// Package wait waits for time to pass, but never longer than a context lasts.
package wait

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// For returns nil once d has passed, or the context's error as soon as ctx ends.
// It asks ctx also where d isn't positive, so that a loop of waits always ends.
func For(ctx context.Context, d time.Duration) error { return OrWoken[any](ctx, d, nil) }

// OrWoken is [For], but also returns nil when woken has a value for it.
func OrWoken[T any](ctx context.Context, d time.Duration, woken <-chan T) error {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-woken:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// Asked is how long an answer says to wait (Retry-After, RFC 9110 §10.2.3: seconds or
// a date); 0 where it doesn't say.
func Asked(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
