package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// maxBatch bounds the bytes that wait for the disk, and so the memory of the queue.
const maxBatch = 4 << 20

// batchLimit is maxBatch, or less for small files: a batch is one write, which the
// rotating library refuses above the file's maximum size. There is room for a mark.
func batchLimit(r Rotation) int {
	return min(maxBatch, r.MaxSizeMB<<20) - maxRecord
}

// batch is what one flush makes durable. Its callers wait for done, then read err.
type batch struct {
	lines []byte
	types [len(types)]int // by index of types
	count int
	done  chan struct{}
	err   error
}

// types orders the counters of a batch.
var types = [...]Type{Intent, Issued, Denied, Failed, Probed}

// stream is one file with its writer: callers put their line into the open batch
// and wait; the writer takes the batch, writes it in one piece, flushes it and
// wakes its callers, while the next batch fills. (Group commit.)
type stream struct {
	name     string
	pace     time.Duration // least pause between two commits; 0 for none
	limit    int           // of the bytes of a batch
	envelope *envelope
	metrics  *metrics
	logger   *slog.Logger

	wake  chan struct{} // holds one token when the open batch has work
	quit  chan struct{} // closed by close
	ended chan struct{} // closed when the writer has returned

	mu      sync.Mutex
	open    *batch
	closed  bool
	failing error // of the last commit; nil after a success

	// Of the writer alone.
	disk   *disk
	torn   []byte // cut off by the last repair, not yet quoted
	failed uint64 // records that failed since the last success
	broken bool   // the last commit failed: repair before the next
	err    error  // of closing
}

func openStream(name, path string, r Rotation, pace time.Duration, v *envelope, m *metrics, l *slog.Logger) (*stream, error) {
	s := newStream(name, newDisk(path, r), batchLimit(r), pace, v, m, l)
	if err := s.start(); err != nil {
		return nil, err
	}
	return s, nil
}

func newStream(name string, d *disk, limit int, pace time.Duration, v *envelope, m *metrics, l *slog.Logger) *stream {
	return &stream{
		name: name, limit: limit, pace: pace, envelope: v, metrics: m, logger: l, disk: d,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}),
		open: newBatch(nil),
	}
}

// start repairs the file and starts the writer.
func (s *stream) start() error {
	torn, err := s.disk.repair()
	if err != nil {
		return err
	}
	if s.torn = torn; torn != nil {
		s.logger.Warn("the audit trail ended in a cut line; it was set aside", "file", s.name, "bytes", len(torn))
	}
	go s.run()
	return nil
}

func newBatch(lines []byte) *batch {
	return &batch{lines: lines[:0], done: make(chan struct{})}
}

// record puts e into the open batch and waits until it is durable or ctx ends.
func (s *stream) record(ctx context.Context, e *Event) error {
	if err := ctx.Err(); err != nil {
		return fault.From(err)
	}
	s.mu.Lock()
	b := s.open
	switch {
	case s.closed:
		s.mu.Unlock()
		return unavailable(errors.New("the audit trail is closed"))
	case len(b.lines) > s.limit-maxRecord:
		s.mu.Unlock()
		s.metrics.records.WithLabelValues(string(e.Type), outcomeOverflow).Inc()
		return unavailable(errors.New("too many audit records wait for the disk"))
	}
	b.lines = s.envelope.event(b.lines, e)
	b.count++
	for i, t := range types {
		if t == e.Type {
			b.types[i]++
		}
	}
	s.mu.Unlock()
	s.signal()
	return wait(ctx, b)
}

// ready is nil after a success. After a failure it commits the open batch, which
// then holds at least the mark of the failure, and gives the outcome.
func (s *stream) ready(ctx context.Context) error {
	s.mu.Lock()
	b, failing, closed := s.open, s.failing, s.closed
	s.mu.Unlock()
	if closed {
		return unavailable(errors.New("the audit trail is closed"))
	}
	if failing == nil {
		return nil
	}
	s.signal()
	return wait(ctx, b)
}

// signal tells the writer that the open batch wants a commit.
func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // one token is enough
	}
}

func wait(ctx context.Context, b *batch) error {
	select {
	case <-b.done:
	case <-ctx.Done():
		select {
		case <-b.done: // both at once: the outcome is known
		default:
			return fault.From(ctx.Err())
		}
	}
	if b.err != nil {
		return unavailable(b.err)
	}
	return nil
}

// unavailable is the one public text of every storage failure.
func unavailable(cause error) error {
	return fault.New(fault.AuditUnavailable, "the audit trail can't be written, so nothing is issued; try again later").
		With("dependency", "audit").Because(cause)
}

// linger is how long the writer waits for more after a batch of several records:
// under load a flush costs more CPU than the records it makes durable, and one
// for eight of them costs little more than one for each. A lone caller never waits.
const linger = 3 * time.Millisecond

// run is the writer. It ends after close, when all that was accepted is committed.
func (s *stream) run() {
	defer close(s.ended)
	var spare []byte
	var company bool // whether the last batch held several records
	for {
		select {
		case <-s.wake:
			b := s.take(spare)
			company = b.count > 1
			spare = s.commit(b)
		case <-s.quit:
			s.commit(s.take(spare))
			s.err = s.disk.close()
			return
		}
		pause := s.pace
		if pause == 0 && company {
			pause = linger
		}
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-s.quit:
			}
		}
	}
}

// take replaces the open batch by an empty one.
func (s *stream) take(spare []byte) *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.open
	s.open = newBatch(spare)
	return b
}

// commit makes b durable, wakes its callers, and gives back b's buffer.
func (s *stream) commit(b *batch) []byte {
	if b.count > 0 || s.broken {
		began := time.Now()
		b.err = s.store(b)
		s.account(b, time.Since(began))
	}
	lines := b.lines
	close(b.done)
	if cap(lines) > maxBatch {
		return nil
	}
	return lines
}

// store repairs what the last failure left, then appends b. The first line after
// a failure is the mark: bytes that a failed flush left behind may be glued to
// it, never to a record.
func (s *stream) store(b *batch) error {
	if s.broken {
		torn, err := s.disk.repair()
		if err != nil {
			return err
		}
		if s.torn == nil {
			s.torn = torn
		}
	}
	lines := b.lines
	if s.broken || s.torn != nil {
		lines = append(s.envelope.mark(make([]byte, 0, maxRecord+len(lines)), s.failed, s.torn), lines...)
	}
	return s.disk.append(lines)
}

// account counts what a commit did.
func (s *stream) account(b *batch, took time.Duration) {
	outcome := outcomeDurable
	switch {
	case b.err != nil:
		outcome = outcomeFailed
		s.failed += uint64(b.count)
		if !s.broken {
			s.logger.Error("the audit trail can't be written; nothing is issued until it can", "file", s.name, "error", b.err)
		}
		s.broken = true
	case s.broken:
		s.logger.Info("the audit trail is written again", "file", s.name, "failed_records", s.failed)
		s.broken, s.failed, s.torn = false, 0, nil
	default:
		s.torn = nil
	}
	s.mu.Lock()
	s.failing = b.err
	s.mu.Unlock()
	for i, n := range b.types {
		if n > 0 {
			s.metrics.records.WithLabelValues(string(types[i]), outcome).Add(float64(n))
		}
	}
	if b.err == nil {
		s.metrics.batch.WithLabelValues(s.name).Observe(float64(b.count))
		s.metrics.commit.WithLabelValues(s.name).Observe(took.Seconds())
	}
}

// close commits what waits, ends the writer and closes the file.
func (s *stream) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.quit)
	<-s.ended
	return s.err
}
