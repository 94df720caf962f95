package server

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

// A dependency that has never worked is starting for a while, which is no error
// in the log; one that goes on failing, or fails after it worked, is.
func TestReadinessTellsStartingFromFailing(t *testing.T) {
	t.Parallel()
	now, err := time.Now(), errBroken
	out := &lines{}
	r, problem := newReadiness([]Dependency{{Name: "issuers", Check: func(context.Context) error { return err }}},
		newInFlightLimit(1), func() time.Time { return now }, slog.New(slog.NewTextHandler(out, nil)))
	if problem != nil {
		t.Fatal(problem)
	}
	at := func(after time.Duration, with error, failures, mended int) {
		t.Helper()
		now, err = now.Add(after), with
		if states := r.check(t.Context()); (states[0].err == nil) != (with == nil) {
			t.Errorf("%v with %v: an old result", states[0].err, with)
		}
		if working := testutil.ToFloat64(r.working); working != metric.Bool(with == nil) {
			t.Errorf("%v with %v: the metric is of an old result", working, with)
		}
		text := out.String()
		if f, m := strings.Count(text, "a dependency fails"), strings.Count(text, "works again"); f != failures || m != mended {
			t.Errorf("%d failures and %d recoveries in the log, want %d and %d:\n%s", f, m, failures, mended, text)
		}
	}
	at(0, errBroken, 0, 0)
	at(failedValid, errBroken, 0, 0)
	at(failedValid, nil, 0, 0) // soon asked about again, and nothing was said
	at(checkValid, errBroken, 1, 0)
	at(failedValid, errBroken, 1, 0)
	at(failedValid, nil, 1, 1)

	r.began, r.states[0].logged, out.text = time.Time{}, starting, lines{}.text // a service that never gets there
	at(0, errBroken, 0, 0)
	at(startTime, errBroken, 1, 0)
	at(failedValid, nil, 1, 1)
}

// An informational dependency is shown and decides nothing; details are for `?verbose`.
func TestInformationalDependencyDecidesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) {
		o.Dependencies = []Dependency{
			{Name: "keys", Check: func(context.Context) error { return nil }, Detail: func() []string { return []string{"12s old"} }},
			{Name: "news", Check: func(context.Context) error { return errBroken }, Informational: true},
		}
	})
	r.server.ready.check(t.Context())
	if shown := testutil.CollectAndCount(r.server.ready.working); shown != 1 {
		t.Errorf("%d dependencies in the metrics, want the one that counts", shown)
	}
	for path, want := range map[string]string{
		"/readyz":         "ok\n",
		"/readyz?verbose": "keys: ok\n  12s old\nnews: failing, but certificates can be issued\n",
	} {
		response := r.send(t, http.MethodGet, path, nil)
		if got := text(t, response); response.StatusCode != http.StatusOK || got != want {
			t.Errorf("%s: %d %q", path, response.StatusCode, got)
		}
	}
	if strings.Contains(r.lines.String(), "a dependency fails") {
		t.Error("the log says that it fails")
	}
}
