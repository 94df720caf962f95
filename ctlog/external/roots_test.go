package external_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/prometheus/client_golang/prometheus"
)

// lister is a log in this process that only answers get-roots, and remembers how
// many certificates a submission had.
type lister struct {
	mu    sync.Mutex
	roots [][]byte
	down  bool
	asked int
	sent  int
}

func (l *lister) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answer := func(code int, body []byte) (*http.Response, error) {
		return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
	}
	if r.Method == http.MethodPost {
		var body struct{ Chain [][]byte }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		l.sent = len(body.Chain)
		return answer(http.StatusBadRequest, nil)
	}
	l.asked++
	if l.down {
		return nil, errors.New("no route")
	}
	raw, err := json.Marshal(map[string]any{"certificates": l.roots})
	if err != nil {
		return nil, err
	}
	return answer(http.StatusOK, raw)
}

func (l *lister) set(roots [][]byte, down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roots, l.down = roots, down
}

// words collects a log between two looks at it.
type words struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

// take returns what was written since the last time.
func (w *words) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.text.Reset()
	return w.text.String()
}

// TestWatchRoots: a log's list of roots is read every day. The chain is cut anew
// when it changes; a log that drops the CA raises the alarm, goes on being asked,
// and the alarm ends when the log accepts again. An outage is no refusal.
func TestWatchRoots(t *testing.T) {
	t.Parallel()
	key, ca := ctlogtest.NewSigner(t), ctlogtest.NewCA(t)
	chain := [][]byte{ca.Intermediate.Raw, ca.Root.Raw}
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, key.PEM(t), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		text := new(words)
		registry, log := prometheus.NewRegistry(), &lister{roots: [][]byte{ca.Root.Raw}}
		l, err := external.New(external.Config{URL: "https://log.example", KeyFile: setting.Path(path)},
			external.Options{Metrics: registry, Logger: slog.New(slog.NewTextHandler(text, nil))}.Over(log))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckRoots(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.WatchRoots(ctx, func() [][]byte { return chain }) }()

		for _, step := range []struct {
			name    string
			roots   [][]byte
			down    bool
			wait    time.Duration
			sent    int // certificates in a submission afterwards
			refused float64
			line    string
		}{
			{"nothing within a day", nil, false, 23 * time.Hour, 3, 0, ""},
			{"an outage is no refusal, and what was known stays", nil, true, time.Hour, 3, 0, "can't be asked for its roots"},
			{"asked again soon: cut anew", [][]byte{ca.Intermediate.Raw}, false, 10 * time.Minute, 2, 0, ""},
			{"dropped", [][]byte{ctlogtest.NewCA(t).Root.Raw}, false, 24 * time.Hour, 3, 1, "stopped accepting this CA's certificates"},
			{"still dropped: said once", nil, false, 10 * time.Minute, 3, 1, ""},
			{"accepted again", chain, false, 10 * time.Minute, 2, 0, "accepts this CA's certificates again"},
		} {
			log.set(step.roots, step.down)
			<-time.After(step.wait + time.Second)
			synctest.Wait()
			if _, err := l.Submit(t.Context(), ca.Chain(t)); err == nil {
				t.Fatal("an SCT from a refusal")
			}
			if log.sent != step.sent {
				t.Errorf("%s: sent %d certificates, want %d", step.name, log.sent, step.sent)
			}
			if got := gauge(t, registry, "mayfly_ctlog_roots_refused"); got != step.refused || l.Roots().Refused != (step.refused == 1) {
				t.Errorf("%s: refused is %v (%+v), want %v", step.name, got, l.Roots(), step.refused)
			}
			if said := text.take(); !strings.Contains(said, step.line) || step.line == "" && said != "" {
				t.Errorf("%s: the log says %q, want %q", step.name, said, step.line)
			}
		}
		if log.asked != 6 {
			t.Errorf("asked %d times, want 6", log.asked)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
