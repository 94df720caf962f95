package embedded_test

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// What two checks of the whole log in a row find is a warning until one finds
// it whole. Entries are taken all the time. When it is checked: package maintain.
func TestScrubWarnsAtTheSecondFinding(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.config.VerifyInterval, b.config.CheckpointInterval = time.Minute, time.Second
		registry, text := prometheus.NewRegistry(), &catest.Lines{}
		b.o.Metrics, b.o.Logger = registry, slog.New(slog.NewTextHandler(text, nil))
		l := b.open(t)
		b.load(t, l, 300)
		b.published(t, 300)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Scrub(ctx) }()
		synctest.Wait()
		if got := gauge(t, registry, "mayfly_ctlog_verify_success"); !math.IsNaN(got) {
			t.Errorf("before the first check success is %v", got)
		}
		tile := b.path("tile", "data", "000")
		whole := readFile(t, tile)
		for _, step := range []struct {
			name   string
			damage bool
			warns  bool
			says   string
		}{
			{"whole", false, false, "it is as it should be"},
			{"damaged", true, false, "checked once more"},
			{"passing", false, false, "it is as it should be"},
			{"damaged again", true, false, "checked once more"},
			{"still damaged", true, true, "the log is damaged"},
			{"and still", true, true, "the log is damaged"},
			{"mended", false, false, "it is as it should be"},
		} {
			content := bytes.Clone(whole)
			if step.damage {
				content[len(content)/2] ^= 1
			}
			if err := os.WriteFile(tile, content, 0o600); err != nil {
				t.Fatal(err)
			}
			before := len(text.String())
			for begin := time.Now(); len(text.String()) == before && time.Since(begin) < 2*time.Minute; {
				time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
			}
			if said := text.String()[before:]; !strings.Contains(said, step.says) {
				t.Errorf("%s: the log says %q, want %q", step.name, said, step.says)
			}
			if err := l.Ready(t.Context()); fault.Warns(err) != step.warns || !step.warns && err != nil || step.warns && strings.Contains(err.Error(), b.path()) {
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
		}
		time.Sleep(time.Minute) //nolint:forbidigo // into the middle of a check, or just before or behind it
		cancel()
		<-done
	})
}

// An interval of 0 checks nothing.
func TestScrubWithoutIntervalEndsAtOnce(t *testing.T) {
	t.Parallel()
	newBench(t).open(t).Scrub(t.Context())
}
