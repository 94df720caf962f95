package embedded

import (
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
)

// What tests set, and nobody else.

func (o *Options) SetLockWait(d time.Duration)               { o.lockWait = d }
func (o *Options) SetMaxQueue(entries int)                   { o.maxQueue = entries }
func (o *Options) SetFree(free func(string) (uint64, error)) { o.free = free }

func (o *Options) SetReached(reached func(point string)) { o.reached = reached }

// BeforeMark has a function called before the mark goes up, whose error keeps it where
// it is. To be called before the first entry.
func (l *Log) BeforeMark(before func(to logdir.High) error) {
	l.Around(nil, func(to logdir.High, advance func(logdir.High) error) error {
		if err := before(to); err != nil {
			return err
		}
		return advance(to)
	})
}

// Around has functions called in the place of the two writes that make entries durable,
// with the writes themselves. To be called before the first entry.
func (l *Log) Around(file func(wal.Frame, func(wal.Frame) error) error, mark func(logdir.High, func(logdir.High) error) error) {
	if file != nil {
		l.ahead = heldFile{l.ahead, file}
	}
	if mark != nil {
		l.mark = heldMark{l.mark, mark}
	}
}

type heldFile struct {
	writeAhead
	around func(wal.Frame, func(wal.Frame) error) error
}

func (f heldFile) Append(frame wal.Frame) error { return f.around(frame, f.writeAhead.Append) }

type heldMark struct {
	highWater
	around func(logdir.High, func(logdir.High) error) error
}

func (m heldMark) Advance(to logdir.High) error { return m.around(to, m.highWater.Advance) }

// Settled waits until the batch whose callers were answered has left the sequencer, as
// readiness doesn't.
func (l *Log) Settled() *Log {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	return l
}

// HoldTree keeps the tree from growing until the answer is called.
func (l *Log) HoldTree() (release func()) {
	l.growing.Lock()
	return l.growing.Unlock
}

// Due reports whether so many entries wait for the tree that they don't wait for their time.
func (l *Log) Due() bool {
	now := l.backlog.now()
	return len(now.entries) >= fullBacklog || now.bytes >= fullBacklogBytes
}

// Closing reports whether what works behind the callers has been told to end.
func (l *Log) Closing() bool { return l.ctx.Err() != nil }

// Full reports whether the entries that wait for the tree leave no room for others.
func (l *Log) Full() bool { return l.backlog.now().full() }
