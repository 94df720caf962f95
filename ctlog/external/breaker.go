package external

import (
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// breaker leaves a log alone that failed several times in a row, and lets one
// submission try after a pause.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int
	until    time.Time // while open: when one may try
	trying   bool      // that one is on its way
}

// enter lets a submission through, or says when to come again.
func (b *breaker) enter() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakerFailures {
		return nil
	}
	if left := b.until.Sub(b.now()); left > 0 || b.trying {
		return resting(max(left, time.Second))
	}
	b.trying = true
	return nil
}

// ready is nil while submissions are let through, or one may try.
func (b *breaker) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left := b.until.Sub(b.now()); b.failures >= breakerFailures && left > 0 {
		return resting(left)
	}
	return nil
}

func resting(left time.Duration) error {
	return fault.New(fault.LogUnavailable, "the transparency log failed several times and is left alone for a while; try again").
		With("dependency", "ctlog").After(left)
}

func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.trying = 0, false
}

func (b *breaker) failed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	b.trying = false
	if b.failures >= breakerFailures {
		b.until = b.now().Add(breakerPause)
	}
}

// abandon is a submission that says nothing about the log.
func (b *breaker) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
}
