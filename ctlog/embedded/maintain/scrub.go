package maintain

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// How the log is checked in the background.
const (
	scrubFirst   = 10 * time.Minute // after the start, so that a service that restarts daily is checked too
	scrubAgain   = time.Minute      // after a finding, which only a second look makes one
	scrubAlarm   = time.Hour        // while there is one
	scrubTiles   = 20               // tiles a second: some 10 MB/s
	scrubReaders = 1                // of them at the same time
)

// Scrub checks the whole log again and again, and remembers what it found.
type Scrub struct {
	Dir      string
	Key      []byte // the log's, DER SubjectPublicKeyInfo
	MarkFile string
	Interval time.Duration // zero: the log is never checked
	Now      func() time.Time
	Logger   *slog.Logger

	mu      sync.Mutex // guards what follows
	finding error      // of the last two checks; nil when the log is whole, or wasn't checked
	at      time.Time
	took    time.Duration
	whole   bool // what the last one found
}

// Run checks the whole log as `mayfly log verify` does, every day or as configured,
// slowly and one check at a time, until ctx ends. What two checks in a row find is
// damage until a later one finds the log whole.
func (s *Scrub) Run(ctx context.Context) {
	every := s.Interval
	if every <= 0 {
		return
	}
	for found, next := 0, min(scrubFirst, every); wait.For(ctx, next) == nil; {
		begin := time.Now()
		report, err := Verify(ctx, s.Dir, VerifyOptions{
			Key: s.Key, MarkFile: s.MarkFile, workers: scrubReaders, pace: rate.NewLimiter(scrubTiles, 1).Wait,
		})
		if ctx.Err() != nil {
			return // a check that was cut off has found nothing
		}
		switch {
		case err == nil:
			found, next = 0, every
		case found == 0:
			found, next = 1, min(scrubAgain, every)
		default:
			found, next = found+1, min(scrubAlarm, every)
		}
		s.found(ctx, report, err, found, time.Since(begin))
	}
}

// found keeps what a check found, and says so.
func (s *Scrub) found(ctx context.Context, report Report, err error, times int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.took, s.whole = s.Now(), took, err == nil
	attrs := []slog.Attr{slog.Uint64("entries", report.Size), slog.Duration("took", took)}
	switch {
	case err == nil:
		s.finding = nil
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "the whole log was checked: it is as it should be", attrs...)
	case times == 1:
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "a check of the whole log failed; it is checked once more", append(attrs, slog.Any("error", err))...)
	default:
		s.finding = err
		s.Logger.LogAttrs(ctx, slog.LevelError, "the log is damaged", append(attrs, slog.Any("error", err))...)
	}
}

// Damage is an error while the log is known to be damaged.
func (s *Scrub) Damage() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finding == nil {
		return nil
	}
	return fmt.Errorf("the log was found damaged at %s; run `mayfly log verify`: %w", s.at.UTC().Format(time.RFC3339), s.finding)
}

// Collectors show the last check of the whole log; NaN before the first.
func (s *Scrub) Collectors() []prometheus.Collector {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return metric.Read(name, help, nil, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.at.IsZero() {
				return math.NaN()
			}
			return read()
		})
	}
	return []prometheus.Collector{
		gauge("mayfly_ctlog_verify_success", "1 when the last check of the whole log found it as it should be, else 0.", func() float64 { return metric.Bool(s.whole) }),
		gauge("mayfly_ctlog_verify_timestamp_seconds", "When the last check of the whole log ended, in seconds since 1970.", func() float64 { return float64(s.at.Unix()) }),
		gauge("mayfly_ctlog_verify_seconds", "How long the last check of the whole log took.", func() float64 { return s.took.Seconds() }),
	}
}
