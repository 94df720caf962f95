package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// How the log is checked in the background.
const (
	patrolFirst  = 10 * time.Minute // after the start, so that a service that restarts daily is checked too
	patrolAgain  = time.Minute      // after a finding, which only a second look makes one
	patrolAlarm  = time.Hour        // while there is one
	patrolTiles  = 20               // tiles a second: some 10 MB/s
	patrolReader = 1                // of them at the same time
)

// patrol is what the checks of the whole log have found.
type patrol struct {
	mu      sync.Mutex
	finding error // of the last two checks; nil when the log is whole, or wasn't checked
	at      time.Time
	took    time.Duration
	whole   bool // what the last one found
}

// Patrol checks the whole log as `mayfly log verify` does, every day or as
// configured, slowly and one check at a time, until ctx ends. What two checks in a row
// find makes the log unready until a later one finds it whole: entries are taken
// meanwhile, as a full disk's are, because what is damaged is old. It returns nil.
func (l *Log) Patrol(ctx context.Context) error {
	every := l.config.VerifyInterval
	if every <= 0 {
		return nil
	}
	wait, found := min(patrolFirst, every), 0
	for l.o.Sleep(ctx, wait) == nil {
		begin := time.Now()
		report, err := l.check(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a check that was cut off has found nothing
		}
		took := time.Since(begin)
		switch {
		case err == nil:
			found, wait = 0, every
		case found == 0:
			found, wait = 1, min(patrolAgain, every)
		default:
			found, wait = found+1, min(patrolAlarm, every)
		}
		l.found(ctx, report, err, found, took)
	}
	return nil
}

// check is one check of everything.
func (l *Log) check(ctx context.Context) (Report, error) {
	limiter := rate.NewLimiter(patrolTiles, 1)
	return Verify(ctx, l.store.dir, VerifyOptions{
		Key: l.about.SPKI, MarkFile: string(l.config.MarkFile), Workers: patrolReader, Pace: limiter.Wait,
	})
}

// found keeps what a check found, and says so.
func (l *Log) found(ctx context.Context, report Report, err error, times int, took time.Duration) {
	p := &l.patrol
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.took, p.whole = l.o.Now(), took, err == nil
	attrs := []slog.Attr{slog.String("log", l.about.URL), slog.Uint64("entries", report.Size), slog.Duration("took", took)}
	switch {
	case err == nil:
		p.finding = nil
		l.o.Logger.LogAttrs(ctx, slog.LevelInfo, "the whole log was checked: it is as it should be", attrs...)
	case times == 1:
		l.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a check of the whole log failed; it is checked once more", append(attrs, slog.Any("error", err))...)
	default:
		p.finding = err
		l.o.Logger.LogAttrs(ctx, slog.LevelError, "the log is damaged", append(attrs, slog.Any("error", err))...)
	}
}

// damage is what the checks have found, as Ready says it.
func (l *Log) damage() error {
	l.patrol.mu.Lock()
	defer l.patrol.mu.Unlock()
	if l.patrol.finding == nil {
		return nil
	}
	return fmt.Errorf("the log was found damaged at %s; run `mayfly log verify`: %w", l.patrol.at.UTC().Format(time.RFC3339), l.patrol.finding)
}

// patrolGauges show the last check of the whole log; NaN before the first.
func (l *Log) patrolGauges(labels prometheus.Labels) []prometheus.Collector {
	gauge := func(name, help string, read func(p *patrol) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			l.patrol.mu.Lock()
			defer l.patrol.mu.Unlock()
			if l.patrol.at.IsZero() {
				return math.NaN()
			}
			return read(&l.patrol)
		})
	}
	return []prometheus.Collector{
		gauge("mayfly_ctlog_verify_success", "1 when the last check of the whole log found it as it should be, else 0.", func(p *patrol) float64 {
			if p.whole {
				return 1
			}
			return 0
		}),
		gauge("mayfly_ctlog_verify_timestamp_seconds", "When the last check of the whole log ended, in seconds since 1970.", func(p *patrol) float64 {
			return float64(p.at.Unix())
		}),
		gauge("mayfly_ctlog_verify_seconds", "How long the last check of the whole log took.", func(p *patrol) float64 { return p.took.Seconds() }),
	}
}
