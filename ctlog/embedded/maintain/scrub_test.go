package maintain_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// closedLog is the directory of a log of three entries that nobody has open.
func closedLog(t *testing.T) (dir string) {
	t.Helper()
	root := t.TempDir()
	ca := ctlogtest.NewCA(t)
	l, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(root, "log")), MarkFile: setting.Path(filepath.Join(root, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond,
	}, embedded.Options{Signer: ctlogtest.NewSigner(t), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := l.Submit(t.Context(), ca.Chain(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "log")
}

// The log is checked soon after the start and then every day; what is found is looked
// at again a minute later, and every hour for as long as it is there.
func TestScrubLooksAgainSoonAfterAFinding(t *testing.T) {
	t.Parallel()
	dir := closedLog(t)
	tile := filepath.Join(dir, "tile", "data", "000.p", "3")
	whole, err := os.ReadFile(tile)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	synctest.Test(t, func(t *testing.T) {
		s := &maintain.Scrub{
			Dir: dir, Interval: 24 * time.Hour, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		}
		checked := s.Collectors()[1] // when
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Run(ctx)
		last := time.Now()
		for _, step := range []struct {
			name    string
			content []byte
			waits   time.Duration // before the check
			damage  bool          // known after it
		}{
			{"soon after the start", whole, 10 * time.Minute, false},
			{"damaged: a second look comes first", damaged, 24 * time.Hour, false},
			{"passing", whole, time.Minute, false},
			{"damaged", damaged, 24 * time.Hour, false},
			{"still damaged", damaged, time.Minute, true},
			{"and still", damaged, time.Hour, true},
			{"mended", whole, time.Hour, false},
			{"a day later", whole, 24 * time.Hour, false},
		} {
			if err := os.WriteFile(tile, step.content, 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(step.waits + 5*time.Second) //nolint:forbidigo // the bubble's clock; a check takes less than a second
			at := time.Unix(int64(testutil.ToFloat64(checked)), 0)
			if waited := at.Sub(last); waited < step.waits-time.Second || waited > step.waits+2*time.Second {
				t.Errorf("%s: checked after %v, want %v", step.name, waited, step.waits)
			}
			if damaged := s.Damaged(); damaged != step.damage {
				t.Errorf("%s: damaged: %v", step.name, damaged)
			}
			last = at
		}
	})
}
