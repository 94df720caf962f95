package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
)

// maxBatch bounds the bytes that wait for the disk, and so the memory of the queue.
const maxBatch = 4 << 20

// maxSpare is the room for lines that is kept between two batches.
const maxSpare = 256 << 10

// batchLimit is maxBatch, or less for small files: a batch is one write, which the
// rotating library refuses above the file's maximum size. There is room for a mark and a head.
func batchLimit(r Rotation) int {
	return min(maxBatch, r.MaxSizeMB<<20) - 2*maxRecord
}

// Outcomes of a record, the second label of mayfly_audit_records_total.
const (
	outcomeDurable  = "durable"  // written and flushed
	outcomeFailed   = "failed"   // the storage refused it
	outcomeOverflow = "overflow" // too many records were waiting
)

// metrics counts what the package does. Labels are closed lists: 6 types × 3
// outcomes, and 2 files.
type metrics struct {
	records       *prometheus.CounterVec
	batch, commit *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		metric.Counter("mayfly_audit_records_total", "Audit records by type (intent, issued, denied, failed, probed, admin) and outcome (durable, failed, overflow).", "type", "outcome"),
		metric.Histogram("mayfly_audit_batch_records", "Records made durable by one flush to the disk, by file (trail, refused).", prometheus.ExponentialBuckets(1, 2, 11), "file"),
		metric.Histogram("mayfly_audit_commit_seconds", "Time to write and flush one batch of audit records, by file (trail, refused).", prometheus.ExponentialBuckets(0.0005, 2, 14), "file"),
	}
	return m, metric.Register(r, m.records, m.batch, m.commit)
}

// batch is what one flush makes durable. Its callers wait for done, then read err.
type batch struct {
	lines  []byte
	types  [len(types)]int // by index of types
	count  int
	wanted bool // somebody waited for it; guarded by stream.mu, as the next
	head   bool // a signed head is to end it
	done   chan struct{}
	err    error
}

// types orders the counters of a batch.
var types = [...]Type{Intent, Issued, Denied, Failed, Probed, Admin}

// stream is one file. Callers put their line into the open batch, which is written in
// one piece and flushed, and that wakes its callers, while the next batch fills (group
// commit). A lone caller waits for nobody else.
type stream struct {
	name     string
	pace     time.Duration     // least pause between two commits; 0 for none
	limit    int               // of the bytes of a batch
	key      *ecdsa.PrivateKey // of heads; nil for none
	envelope *envelope
	metrics  *metrics
	logger   *slog.Logger
	quit     chan struct{} // closed by close: nobody pauses any more

	mu       sync.Mutex
	open     *batch
	writing  bool // a goroutine writes
	closed   bool
	failing  error // of the last commit; nil after a success
	unsigned bool  // records came since the last head

	// Of the goroutine that writes.
	disk   *disk
	spare  []byte            // of a batch that is done
	last   time.Time         // of the last commit's end
	shared bool              // whether it held several records
	torn   []byte            // cut off by the last repair, not yet quoted
	failed uint64            // records that failed since the last success
	broken bool              // the last commit failed: repair before the next
	tip    [sha256.Size]byte // the hash of the file's last line
}

// openStream repairs the file. It starts nothing.
func openStream(name string, d *disk, limit int, pace time.Duration, key *ecdsa.PrivateKey, v *envelope, m *metrics, l *slog.Logger) (*stream, error) {
	s := &stream{
		name: name, key: key, limit: limit, pace: pace, envelope: v, metrics: m, logger: l, disk: d,
		quit: make(chan struct{}), open: newBatch(nil),
	}
	var err error
	if s.torn, s.tip, err = d.repair(); err != nil {
		return nil, err
	}
	s.unsigned = s.tip != [sha256.Size]byte{} // who knows how the last run ended
	if s.torn != nil {
		l.Warn("the audit trail ended in a cut line; it was set aside", "file", name, "bytes", len(s.torn))
	}
	return s, nil
}

func newBatch(lines []byte) *batch {
	return &batch{lines: lines[:0], done: make(chan struct{})}
}

// record puts e into the open batch and waits until it is durable or ctx ends.
func (s *stream) record(ctx context.Context, e *Event) error {
	if err := ctx.Err(); err != nil {
		return fault.From(err)
	}
	return s.join(ctx, func(b *batch) (bool, error) {
		if len(b.lines) > s.limit-maxRecord {
			s.metrics.records.WithLabelValues(string(e.Type), outcomeOverflow).Inc()
			return false, unavailable(errors.New("too many audit records wait for the disk"))
		}
		b.lines = s.envelope.event(b.lines, e)
		b.count++
		b.types[slices.Index(types[:], e.Type)]++
		s.unsigned = true
		return true, nil
	})
}

// sign ends what was recorded since the last head with one, where there is a key.
func (s *stream) sign(ctx context.Context) error {
	return s.join(ctx, func(*batch) (bool, error) { return s.headless(), nil })
}

// headless has the open batch end in a head, where something came since the last one.
// It is for whoever holds mu.
func (s *stream) headless() bool {
	s.open.head = s.key != nil && s.unsigned
	return s.open.head
}

// ready is nil after a success. After a failure it commits the open batch, which
// then holds at least the mark of the failure, and gives the outcome.
func (s *stream) ready(ctx context.Context) error {
	return s.join(ctx, func(*batch) (bool, error) { return s.failing != nil, nil })
}

// join has the open batch written, if put, which holds mu, has a reason for that, and
// waits until it is durable or has failed, or ctx ends. What was accepted gets to the
// disk, whoever has given up.
func (s *stream) join(ctx context.Context, put func(*batch) (bool, error)) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return unavailable(errors.New("the audit trail is closed"))
	}
	b := s.open
	wanted, err := put(b)
	if wanted {
		s.want()
	}
	s.mu.Unlock()
	if !wanted {
		return err
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		select {
		case <-b.done: // the outcome is known
		default:
			return fault.From(ctx.Err())
		}
	}
	if b.err != nil {
		return unavailable(b.err)
	}
	return nil
}

// want has the open batch written. It is for whoever holds mu.
func (s *stream) want() {
	s.open.wanted = true
	if !s.writing {
		s.writing = true
		go s.write() // nothing can end a flush, and callers have a time to keep
	}
}

// unavailable is the one public text of every storage failure.
func unavailable(cause error) error {
	return fault.New(fault.AuditUnavailable, "the audit trail can't be written, so nothing is issued; try again later").
		With("dependency", "audit").Because(cause)
}

// write commits batches for as long as somebody wants another.
func (s *stream) write() {
	for s.due() {
		if pause := s.pace - time.Since(s.last); pause > 0 {
			select {
			case <-time.After(pause):
			case <-s.quit:
			}
		}
		s.gather()
		s.commit()
	}
}

func (s *stream) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = s.open.wanted
	return s.writing
}

// gather lets others put in their records first: a flush costs as much CPU as half of
// a certificate's cryptography. Those who come are those who can run now; nobody waits
// for them while a core is idle. After a batch of one nobody is waited for.
func (s *stream) gather() {
	for n := 0; s.shared; {
		s.mu.Lock()
		now := s.open.count
		s.mu.Unlock()
		if now == n {
			return
		}
		n = now
		runtime.Gosched()
	}
}

// commit makes the open batch durable and wakes its callers.
func (s *stream) commit() {
	s.mu.Lock()
	b := s.open
	s.open = newBatch(s.spare)
	s.mu.Unlock()
	if b.count > 0 || s.broken || b.head {
		began := time.Now()
		b.err = s.store(b)
		s.last = time.Now()
		s.account(b, s.last.Sub(began))
	}
	s.shared = b.count > 1
	if s.spare = b.lines; cap(s.spare) > maxSpare {
		s.spare = nil
	}
	close(b.done)
}

// store repairs what the last failure left, then appends b. The first line after
// a failure is the mark: bytes that a failed flush left behind may be glued to
// it, never to a record.
func (s *stream) store(b *batch) error {
	if s.broken {
		torn, tip, err := s.disk.repair()
		if err != nil {
			return err
		}
		s.tip = tip
		if s.torn == nil {
			s.torn = torn
		}
	}
	lines := b.lines
	if s.broken || s.torn != nil {
		lines = append(s.envelope.mark(make([]byte, 0, maxRecord+len(lines)), s.failed, s.torn), lines...)
	}
	tip := chain(lines, s.tip)
	if b.head {
		from := len(lines)
		var err error
		if lines, err = s.envelope.head(lines, s.name, tip, s.key); err != nil {
			return err
		}
		tip = chain(lines[from:], tip)
	}
	if err := s.disk.append(lines); err != nil {
		return err
	}
	s.tip = tip
	return nil
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
	s.unsigned = s.unsigned && (b.err != nil || !b.head || s.open.count > 0)
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

// close commits what waits and closes the file.
func (s *stream) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	b := s.open
	s.headless()
	s.want()
	s.mu.Unlock()
	close(s.quit)
	<-b.done
	return s.disk.close()
}
