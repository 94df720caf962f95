package embedded_test

import (
	"context"
	"log/slog"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// patrolled runs the background check of a log; each wait is told, and ends when
// the test says.
type patrolled struct {
	waits chan time.Duration
	ends  chan struct{}
}

func (p *patrolled) sleep(ctx context.Context, d time.Duration) error {
	select {
	case p.waits <- d:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.ends:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestPatrol: the log is checked as a whole every day; what two checks in a row
// find takes readiness away until one finds the log whole. Entries are taken all the
// time, and the end of the service ends a check.
func TestPatrol(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config.VerifyInterval = 24 * time.Hour
	registry, text, p := prometheus.NewRegistry(), &locked{}, &patrolled{make(chan time.Duration), make(chan struct{})}
	b.o.Metrics, b.o.Logger, b.o.Sleep = registry, slog.New(slog.NewTextHandler(text, nil)), p.sleep
	l := b.open(t)
	b.publishes(t, l, nil, 300)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Patrol(ctx) }()
	if got := gauge(t, registry, "mayfly_ctlog_verify_success"); !math.IsNaN(got) {
		t.Errorf("before the first check success is %v", got)
	}

	tile := b.path("tile", "data", "000")
	whole := read(t, tile)
	for _, step := range []struct {
		name   string
		damage bool
		waited time.Duration // before the check
		ready  bool
		says   string
	}{
		{"soon after the start", false, 10 * time.Minute, true, "it is as it should be"},
		{"damaged: a second look comes first", true, 24 * time.Hour, true, "checked once more"},
		{"passing", false, time.Minute, true, "it is as it should be"},
		{"damaged", true, 24 * time.Hour, true, "checked once more"},
		{"still damaged", true, time.Minute, false, "the log is damaged"},
		{"and still", true, time.Hour, false, "the log is damaged"},
		{"mended", false, time.Hour, true, "it is as it should be"},
	} {
		if got := <-p.waits; got != step.waited {
			t.Errorf("%s: waited %v, want %v", step.name, got, step.waited)
		}
		content := whole
		if step.damage {
			content = append([]byte(nil), whole...)
			content[len(content)/2] ^= 1
		}
		if err := os.WriteFile(tile, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(text.String())
		p.ends <- struct{}{}
		next := <-p.waits // the check is over
		if said := text.String()[before:]; !strings.Contains(said, step.says) {
			t.Errorf("%s: the log says %q, want %q", step.name, said, step.says)
		}
		if err := l.Ready(t.Context()); (err == nil) != step.ready {
			t.Errorf("%s: ready: %v", step.name, err)
		}
		if got := gauge(t, registry, "mayfly_ctlog_verify_success"); (got == 1) == step.damage {
			t.Errorf("%s: success is %v", step.name, got)
		}
		if at := time.Unix(int64(gauge(t, registry, "mayfly_ctlog_verify_timestamp_seconds")), 0); time.Since(at) > time.Minute {
			t.Errorf("%s: checked at %v", step.name, at)
		}
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		go func() { p.waits <- next }() // for the next step to look at
	}
	<-p.waits
	p.ends <- struct{}{} // in the middle of a check, or just before or behind it
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPatrolOff: an interval of 0 checks nothing.
func TestPatrolOff(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.open(t).Patrol(t.Context()); err != nil {
		t.Error(err)
	}
}
