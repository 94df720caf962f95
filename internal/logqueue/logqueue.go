// Package logqueue stands between a service's log and whoever reads it, so that
// the reader can neither block the service nor end it. A pipe whose reader stalls
// blocks who writes to it, and one whose reader is gone refuses: here lines wait in
// a bounded queue, and those that find it full, or can't be written, are dropped
// and counted.
package logqueue

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what waits to be written.
const (
	maxLines = 4096
	maxBytes = 1 << 20
)

// Queue is an io.Writer that never blocks and never fails. Each Write is one line.
type Queue struct {
	to       io.Writer
	gap      func(dropped uint64)
	lines    chan []byte
	bytes    atomic.Int64
	dropped  atomic.Uint64
	mu       sync.RWMutex // held for writing by Close alone
	closed   bool
	finished chan struct{}
}

// New makes a queue before a writer. After lines were dropped and another was
// written, gap, which may be nil, is told how many were; it may write to the
// writer itself. Close ends the queue's goroutine.
func New(to io.Writer, gap func(dropped uint64)) *Queue {
	q := &Queue{to: to, gap: gap, lines: make(chan []byte, maxLines), finished: make(chan struct{})}
	go q.run()
	return q
}

// Write queues a copy of b, or drops it.
func (q *Queue) Write(b []byte) (int, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	size := int64(len(b))
	if !q.closed && q.bytes.Add(size) <= maxBytes {
		select {
		case q.lines <- bytes.Clone(b):
			return len(b), nil
		default:
		}
	}
	q.bytes.Add(-size) // of a closed queue nobody asks
	q.dropped.Add(1)
	return len(b), nil
}

// Dropped is how many lines were lost so far.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

// run writes until the queue is closed and empty.
func (q *Queue) run() {
	defer close(q.finished)
	told := uint64(0)
	for b := range q.lines {
		_, err := q.to.Write(b)
		q.bytes.Add(-int64(len(b)))
		if err != nil {
			q.dropped.Add(1)
			continue
		}
		if lost := q.dropped.Load(); lost > told && q.gap != nil {
			q.gap(lost - told)
			told = lost
		}
	}
}

// Close takes no more lines, and waits until those that are queued are written,
// for the given time at most: a reader that stalls may never take them.
func (q *Queue) Close(wait time.Duration) {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.lines)
	}
	q.mu.Unlock()
	select {
	case <-q.finished:
	case <-time.After(wait):
	}
}
