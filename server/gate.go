package server

import (
	"sync"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// gate counts requests in flight, refuses what is too much, and lets a drain
// wait for the last one.
type gate struct {
	mu        sync.Mutex
	closed    bool
	active    int
	issuances int
	most      int // issuances at once
	idle      chan struct{}
}

func newGate(issuances int) *gate { return &gate{most: issuances, idle: make(chan struct{})} }

// enter admits one request, or says why not: OVERLOADED, when it asks for a
// certificate and too many are in the making, or SHUTTING_DOWN. Every admitted
// request leaves.
func (g *gate) enter(issues bool) *fault.Error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return fault.New(fault.ShuttingDown, "this instance is shutting down; try again").After(retryShutdown)
	case issues && g.issuances >= g.most:
		return fault.New(fault.Overloaded, "too many requests are in progress; try again").After(retryOverload)
	}
	g.active++
	if issues {
		g.issuances++
	}
	return nil
}

// leave is the end of an admitted request.
func (g *gate) leave(issues bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
	if issues {
		g.issuances--
	}
	if g.closed && g.active == 0 {
		close(g.idle)
	}
}

// close refuses what comes from now on. The channel is closed when nothing is
// in flight any more.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		if g.active == 0 {
			close(g.idle)
		}
	}
	return g.idle
}

// limit sets how many issuances may be in the making from now on. Those that are
// go on.
func (g *gate) limit(issuances int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most = issuances
}

// draining reports whether the gate is closed.
func (g *gate) draining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// inFlight is how many requests are being served.
func (g *gate) inFlight() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return float64(g.active)
}
