// Package sink carries the records of the audit trail elsewhere. The trail itself is the
// queue: a sink follows its files by position, which is kept beside them, and goes on
// from there however long the other side was away. So each record is delivered at least
// once, a sink holds one batch in memory, and nothing of it is in the way of issuing.
package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The times and sizes of delivering.
const (
	maxBatch   = 256 << 10       // of records at once, and one more
	lookEvery  = time.Second     // for new records
	keepEvery  = 5 * time.Second // the position at most, which costs two flushes
	firstPause = time.Second     // after a failure; then twice as long each time
	longPause  = time.Minute
	sendTime   = 30 * time.Second // for a batch
)

// Options are what New needs besides the configuration.
type Options struct {
	Out     io.Writer // of stdout:
	Now     func() time.Time
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Sink is one sink.
type Sink struct {
	Name    string
	config  audit.Sink
	files   []audit.TrailFile
	state   string // the file of the position
	to      target
	options Options
	records *prometheus.CounterVec

	failed  atomic.Pointer[error] // of the last batch; nil after a success
	pending atomic.Int64          // when the record that waits was recorded, as Unix time; 0: none waits
	kept    time.Time             // when the position was
}

// New makes the sinks of a trail. It connects nowhere.
func New(c audit.Config, o Options) (all []*Sink, err error) {
	records := metric.Counter("mayfly_audit_sink_records_total",
		"Records of the audit trail that a sink was sent, by sink and outcome (delivered, failed); those that failed are sent again.", "sink", "outcome")
	shown := []prometheus.Collector{records}
	for i, config := range c.Sinks {
		s := &Sink{Name: config.Name, config: config, files: audit.Files(string(c.Path)), options: o, records: records}
		s.state = strings.TrimSuffix(string(c.Path), filepath.Ext(string(c.Path))) + ".sink-" + config.Name + ".json"
		if s.to, err = newTarget(config, o.Out); err != nil {
			return nil, fmt.Errorf("%s: %w", setting.Index("audit.sinks", i), err)
		}
		records.WithLabelValues(s.Name, "delivered")
		records.WithLabelValues(s.Name, "failed")
		shown = append(shown, metric.Read("mayfly_audit_sink_behind_seconds", "How old the oldest record is that a sink hasn't got yet; 0 when it has all.",
			prometheus.Labels{"sink": s.Name}, s.behind))
		all = append(all, s)
	}
	return all, metric.Register(o.Metrics, shown...)
}

// behind is how old the record is that waits, in seconds.
func (s *Sink) behind() float64 {
	if at := s.pending.Load(); at > 0 {
		return max(0, s.options.Now().Sub(time.Unix(at, 0)).Seconds())
	}
	return 0
}

// Check fails while the last batch did.
func (s *Sink) Check(context.Context) error {
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("it doesn't take records, which wait in the trail: %w", *err)
	}
	return nil
}

// Run delivers until ctx ends.
func (s *Sink) Run(ctx context.Context) error {
	defer s.to.close()
	positions := s.positions()
	followers := make([]*audit.Follower, len(s.files))
	for i, file := range s.files {
		followers[i] = audit.Follow(file.Path, time.Time{}, "")
		defer followers[i].Close()
		if positions[i].First == "" {
			continue
		}
		if found, err := followers[i].Resume(positions[i]); err != nil || !found {
			s.options.Logger.WarnContext(ctx, "a sink of the audit trail goes on with the oldest record there is: rotation deleted what it had got to, and maybe more", "sink", s.Name, "file", file.Path, "error", err)
		}
	}
	changed := false
	defer func() {
		if changed {
			s.keep(positions)
		}
	}()
	for {
		idle := true
		for i, follower := range followers {
			batch, more := s.read(ctx, follower)
			if s.deliver(ctx, batch) != nil {
				return nil
			}
			if at := follower.Position(); at.First != "" && at != positions[i] {
				positions[i], changed = at, true
			}
			idle = idle && !more
		}
		if changed && time.Since(s.kept) > keepEvery {
			changed = !s.keep(positions)
		}
		if !idle {
			continue
		}
		s.pending.Store(0)
		if wait.For(ctx, lookEvery) != nil {
			return nil
		}
	}
}

// read is the next batch of a file, and whether there may be more.
func (s *Sink) read(ctx context.Context, follower *audit.Follower) (batch [][]byte, more bool) {
	size := 0
	for line, err := range follower.Lines() {
		if err != nil {
			s.options.Logger.WarnContext(ctx, "a sink of the audit trail leaves out what can't be read", "sink", s.Name, "error", err)
			continue
		}
		r, err := audit.ParseRecord(line.Text)
		if err != nil || s.config.Only != "" && r.Type != string(s.config.Only) {
			if ctx.Err() != nil {
				return batch, false // or the whole trail would have to be read first
			}
			continue
		}
		if len(batch) == 0 {
			s.pending.Store(r.Time.Unix())
		}
		batch = append(batch, append([]byte(nil), line.Text...))
		if size += len(line.Text); size > maxBatch {
			return batch, true
		}
	}
	return batch, false
}

// deliver sends a batch until it is taken, or ctx ends.
func (s *Sink) deliver(ctx context.Context, batch [][]byte) error {
	for pause := firstPause; len(batch) > 0; pause = min(2*pause, longPause) {
		sending, cancel := context.WithTimeout(ctx, sendTime)
		err := s.to.send(sending, batch)
		cancel()
		if err == nil {
			s.records.WithLabelValues(s.Name, "delivered").Add(float64(len(batch)))
			if s.failed.Swap(nil) != nil {
				s.options.Logger.InfoContext(ctx, "a sink takes the audit trail's records again", "sink", s.Name)
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.records.WithLabelValues(s.Name, "failed").Add(float64(len(batch)))
		if s.failed.Swap(&err) == nil {
			s.options.Logger.WarnContext(ctx, "a sink doesn't take the audit trail's records; they wait in the trail", "sink", s.Name, "error", err)
		}
		if err := wait.For(ctx, pause); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// positions are those that were kept, one a file.
func (s *Sink) positions() []audit.Position {
	all := make([]audit.Position, len(s.files))
	b, err := durable.ReadPlain(s.state, 1<<16)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.options.Logger.Warn("the position of a sink of the audit trail can't be read: it begins anew with the oldest record", "sink", s.Name, "error", err)
	}
	return slices.Concat(all, make([]audit.Position, len(s.files)))[:len(s.files)]
}

// keep writes the positions down.
func (s *Sink) keep(all []audit.Position) bool {
	s.kept = time.Now()
	b, err := json.Marshal(all)
	if err == nil {
		err = durable.Put(s.state, b, 0o600)
	}
	if err != nil {
		s.options.Logger.Warn("the position of a sink of the audit trail can't be kept: after a restart it gets records again", "sink", s.Name, "error", err)
	}
	return err == nil
}
