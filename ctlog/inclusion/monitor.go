// Package inclusion checks that logs keep their promises: an SCT says that a
// certificate will be in the log within the log's maximum merge delay (MMD, RFC
// 6962 §3), and the monitor reads the log, as anybody can, until it is.
//
// What was promised is taken from the audit trail, where every issued certificate
// is on record before it leaves: the backlog is on disk without a second write, and
// survives a restart. A file beside the trail remembers how far all is well.
package inclusion

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// What Options that say nothing mean.
const (
	DefaultMMD      = 24 * time.Hour   // what public RFC 6962 logs promise
	defaultInterval = 10 * time.Second // between two looks
)

// Bounds of what one look does.
const (
	maxPending  = 100_000        // promises in memory; more stay in the trail for later
	passTimeout = time.Minute    // of reading one log
	overlap     = time.Minute    // the trail's records are in order but for this
	lookBack    = 2 * DefaultMMD // how far the first start reads the trail
)

// Options are what a Monitor works with.
type Options struct {
	Trail    func(since time.Time) Trail // reads what is on record from then on
	State    string                      // the file that remembers how far all is well
	Logs     []remote.Log                // their merge delay is DefaultMMD unless they say another
	Interval time.Duration               // zero: ten seconds
	Now      func() time.Time            // nil: time.Now
	Logger   *slog.Logger                // nil: nothing is logged
	Metrics  prometheus.Registerer       // nil: nothing is registered
}

// Monitor follows the audit trail and reads the logs. Run does the work.
type Monitor struct {
	o       Options
	next    atomic.Pointer[map[[32]byte]*watched] // the logs of the next look, where they are others; else nil
	logs    map[[32]byte]*watched
	trail   Trail
	until   time.Time // what was recorded before is in its log
	metrics *metrics
	said    string // the last complaint, while it holds
	saidAt  time.Time
}

// watched is a log with what it still owes.
type watched struct {
	*remote.Reader
	pending []promise
	overdue int // of them, older than half of the MMD at the last look
	broken  int // of them, shown to be false
}

// promise is one that the log still owes.
type promise struct {
	Promise
	broken bool
}

// New makes a monitor. It reads the state file, and no log.
func New(o Options) (*Monitor, error) {
	o.Interval = cmp.Or(max(o.Interval, 0), defaultInterval)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	m := &Monitor{o: o}
	follow, err := m.Prepare(o.Logs)
	if err != nil {
		return nil, err
	}
	if m.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	follow()
	m.adopt()
	if m.until, err = readState(o.State, o.Now().Add(-lookBack)); err != nil {
		return nil, err
	}
	if m.until.After(o.Now()) { // the clock went back, and records began again at an earlier time
		m.until = o.Now().Add(-lookBack)
	}
	m.trail = o.Trail(m.until)
	return m, nil
}

// Prepare checks logs, and returns what has them watched from the next look on, in
// place of those it had. What is pending of a log that stays, stays; a log that goes is
// not asked again, so it should owe nothing.
func (m *Monitor) Prepare(logs []remote.Log) (follow func(), err error) {
	next := make(map[[32]byte]*watched, len(logs))
	for _, l := range logs {
		l.MMD = cmp.Or(max(l.MMD, 0), DefaultMMD)
		r, err := remote.New(l)
		if err != nil {
			return nil, fmt.Errorf("inclusion: the log %s: %w", l.Description.URL, err)
		}
		next[l.Description.ID] = &watched{Reader: r}
	}
	return func() { m.next.Store(&next) }, nil
}

// adopt puts what was followed last in force.
func (m *Monitor) adopt() {
	next := m.next.Swap(nil)
	if next == nil {
		return
	}
	for id, w := range *next {
		if before := m.logs[id]; before != nil {
			w.pending, w.overdue, w.broken = before.pending, before.overdue, before.broken
		}
	}
	m.metrics.follow(m.logs, *next)
	m.logs = *next
}

// Run looks at trail and logs until ctx ends. It returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.trail.Close()
	for next := time.Duration(0); wait.For(ctx, next) == nil; next = m.o.Interval {
		if err := m.Look(ctx); ctx.Err() == nil {
			m.complain(ctx, err)
		}
	}
	return nil
}

// complain logs why a look found less than it should, once an hour while that stays the same.
func (m *Monitor) complain(ctx context.Context, err error) {
	if err == nil {
		m.said = ""
		return
	}
	if now := m.o.Now(); err.Error() != m.said || now.Sub(m.saidAt) >= time.Hour {
		m.said, m.saidAt = err.Error(), now
		m.o.Logger.WarnContext(ctx, "checking what logs promised", slog.Any("error", err))
	}
}

// Look reads what is new in the trail, asks the logs for all that is pending, and
// remembers how far all is well. An error says what could not be read; the next look
// tries again. It must not be called beside Run.
func (m *Monitor) Look(ctx context.Context) error {
	m.adopt()
	var errs []error
	latest, err := m.trail.Read(maxPending-m.pending(), m.take)
	if err != nil {
		m.metrics.unread.Inc()
		errs = append(errs, err)
	}
	for _, w := range m.logs {
		errs = append(errs, m.ask(ctx, w))
		m.tally(ctx, w)
	}
	return errors.Join(append(errs, m.remember(latest))...)
}

// take adds a promise, when it is of a log that is watched.
func (m *Monitor) take(p Promise) {
	if w := m.logs[p.Log]; w != nil {
		w.pending = append(w.pending, promise{Promise: p})
	}
}

func (m *Monitor) pending() int {
	n := 0
	for _, w := range m.logs {
		n += len(w.pending)
	}
	return n
}

// ask reads the log once and takes off what it holds.
func (m *Monitor) ask(ctx context.Context, w *watched) error {
	if len(w.pending) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	look := look{Reader: w.Reader, tiles: make(map[tileKey][]byte)}
	var left []promise
	var failure error
	for i, p := range w.pending {
		held, err := look.holds(ctx, p)
		switch wrong := (*brokenError)(nil); {
		case errors.As(err, &wrong):
			if !p.broken {
				m.o.Logger.ErrorContext(ctx, "a log broke its promise: a certificate's SCT is false",
					slog.String("log", w.Description.URL), slog.String("serial", p.Serial), slog.Any("error", err))
			}
			p.broken = true
		case err != nil:
			failure = fmt.Errorf("reading the log %s: %w", w.Description.URL, err)
		}
		if held {
			m.metrics.done.WithLabelValues(w.Description.URL).Inc()
			continue
		}
		left = append(left, p)
		if failure != nil { // the log can't be read now: the rest waits
			left = append(left, w.pending[i+1:]...)
			break
		}
	}
	w.pending = left
	return failure
}

// tally counts what is late or false, and says so when it becomes more.
func (m *Monitor) tally(ctx context.Context, w *watched) {
	now, before := m.o.Now(), w.overdue
	w.overdue, w.broken = 0, 0
	oldest := time.Duration(0)
	for _, p := range w.pending {
		age := now.Sub(p.Promised)
		oldest = max(oldest, age)
		if age > w.MMD/2 {
			w.overdue++
		}
		if p.broken {
			w.broken++
		}
	}
	if w.overdue > before {
		m.o.Logger.ErrorContext(ctx, "a log is late with what it promised: certificates are not in it after half of its merge delay",
			slog.String("log", w.Description.URL), slog.Int("certificates", w.overdue), slog.Duration("oldest", oldest), slog.Duration("merge_delay", w.MMD))
	}
	m.metrics.show(w, oldest)
}

// remember writes the time before which every promise was kept, when it moved. It
// moves back only where something from before it is owed: the clock went back.
func (m *Monitor) remember(latest time.Time) error {
	until, owed := latest, false
	for _, w := range m.logs {
		for _, p := range w.pending {
			if p.Recorded.Before(until) {
				until = p.Recorded
			}
			owed = owed || p.Recorded.Before(m.until)
		}
	}
	if until = until.Add(-overlap); until.Equal(m.until) || until.Before(m.until) && !owed {
		return nil
	}
	m.until = until
	return writeState(m.o.State, m.until)
}

type metrics struct {
	pending, overdue, broken, oldest *prometheus.GaugeVec
	done                             *prometheus.CounterVec
	unread                           prometheus.Counter
}

// newMetrics registers the metrics.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		pending: metric.Gauge("mayfly_ctlog_promises_pending", "Issued certificates whose entry in the log has not been seen yet.", "log"),
		overdue: metric.Gauge("mayfly_ctlog_promises_overdue", "Pending certificates older than half of the log's merge delay. Anything above 0 needs a person.", "log"),
		broken:  metric.Gauge("mayfly_ctlog_promises_broken", "Pending certificates whose SCT was shown to be false. Anything above 0 needs a person.", "log"),
		oldest:  metric.Gauge("mayfly_ctlog_promise_oldest_seconds", "Age of the oldest pending certificate's SCT.", "log"),
		done:    metric.Counter("mayfly_ctlog_promises_kept_total", "Issued certificates whose entry was found and proven to be in the log.", "log"),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_promises_unread_total", Help: "Times that a part of the audit trail couldn't be read, so that its promises weren't checked. Any increase needs a person.",
		}),
	}
	return m, metric.Register(r, m.pending, m.overdue, m.broken, m.oldest, m.done, m.unread)
}

// follow gives each log that is watched a series, and takes the gauges of the others.
func (m *metrics) follow(before, now map[[32]byte]*watched) {
	for _, g := range []*prometheus.GaugeVec{m.pending, m.overdue, m.broken, m.oldest} {
		for id, w := range before {
			if now[id] == nil {
				g.DeleteLabelValues(w.Description.URL)
			}
		}
		for _, w := range now {
			g.WithLabelValues(w.Description.URL)
		}
	}
	for _, w := range now {
		m.done.WithLabelValues(w.Description.URL)
	}
}

func (m *metrics) show(w *watched, oldest time.Duration) {
	url := w.Description.URL
	m.pending.WithLabelValues(url).Set(float64(len(w.pending)))
	m.overdue.WithLabelValues(url).Set(float64(w.overdue))
	m.broken.WithLabelValues(url).Set(float64(w.broken))
	m.oldest.WithLabelValues(url).Set(oldest.Seconds())
}

// state is what the monitor remembers over a restart. Losing it costs reading
// the trail again, never a promise.
type state struct {
	Until time.Time `json:"until"` // what was recorded before is in its log
}

// StateFile is where the monitor of the trail keeps its state: beside it.
func StateFile(trail string) string {
	return strings.TrimSuffix(trail, filepath.Ext(trail)) + ".inclusion.json"
}

// readState reads the file; without one all before the time given is well.
func readState(path string, begin time.Time) (time.Time, error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return begin, fmt.Errorf("inclusion: reading the monitor's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil || s.Until.IsZero() {
		return begin, nil //nolint:nilerr // cut short by a crash, or not there: the trail has it all
	}
	return s.Until, nil
}

// writeState replaces the file.
func writeState(path string, until time.Time) error {
	raw, err := json.Marshal(state{until})
	if err == nil {
		err = durable.Put(path, append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("inclusion: writing the monitor's state: %w", err)
	}
	return nil
}

// Pending reads the whole trail that is there, as far back as since and for as long before
// it as a clock may have been wrong, and the one log of o, and returns the serial numbers
// of certificates that the log promised and doesn't hold yet, or never will. It takes
// nobody's word for what was well before, and writes nothing. An error says what could
// not be read.
func Pending(ctx context.Context, o Options, since time.Time) ([]string, error) {
	o.State, o.Metrics = "", nil
	m, err := New(o)
	if err != nil {
		return nil, err
	}
	m.trail = o.Trail(since.Add(-lookBack))
	defer m.trail.Close()
	var pending []string
	for {
		read := 0
		if _, err := m.trail.Read(maxPending, func(p Promise) { read++; m.take(p) }); err != nil {
			return nil, err
		}
		for _, w := range m.logs {
			if err := m.ask(ctx, w); err != nil {
				return nil, err
			}
			for _, p := range w.pending {
				pending = append(pending, p.Serial)
			}
			w.pending = nil
		}
		if read == 0 {
			return pending, nil
		}
	}
}

// Promise is one SCT in a certificate that was issued.
type Promise struct {
	Log, Leaf [32]byte  // the log's id, and the entry's hash in its tree
	Index     *uint64   // of the entry; nil from a log without leaf indices
	Serial    string    // of the certificate
	Promised  time.Time // the SCT's timestamp
	Recorded  time.Time // when the certificate was issued
}

// Trail tells what is on record of promises, from a time on, the oldest first.
type Trail interface {
	// Read yields the promises that came since the last Read, or some of them once
	// there were more than limit. It returns the time of the last record that was
	// read. After an error the next Read goes on from there; a promise may be yielded
	// twice, and none is left out that can be read.
	Read(limit int, yield func(Promise)) (latest time.Time, err error)
	// Close ends the reading; a later Read may yield again what was read before.
	Close()
}
