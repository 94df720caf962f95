package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
)

// A dependency that has never worked is starting for a while, which is no error
// in the log; one that goes on failing, or fails after it worked, is.
func TestReadinessTellsStartingFromFailing(t *testing.T) {
	t.Parallel()
	now, err := time.Now(), errBroken
	out := &catest.Lines{}
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

	r.began, r.states[0].logged, *out = time.Time{}, starting, catest.Lines{} // a service that never gets there
	at(0, errBroken, 0, 0)
	at(startTime, errBroken, 1, 0)
	at(failedValid, nil, 1, 1)
}

// A warning stops nothing: it is on /readyz for anybody to read, has a gauge of its own
// and a line in the log when it begins and ends.
func TestWarningStopsNothing(t *testing.T) {
	t.Parallel()
	err := errBroken
	r := newRig(t, func(_ *Config, o *Options) {
		o.Dependencies = []Dependency{
			{Name: "keys", Check: func(context.Context) error { return nil }},
			{Name: "log", Check: func(context.Context) error { return err }},
		}
	})
	r.server.ready.began = time.Now().Add(-startTime) // it isn't starting any more
	var before string
	for _, step := range []struct {
		err                error
		code               int
		plain, full, lines string
	}{
		{nil, 200, "ok\n", "keys: ok\nlog: ok\n", ""},
		{fault.Warning("its disk fills"), 200, "ok\nlog: warning: its disk fills\n", "keys: ok\nlog: warning: its disk fills\n", "a dependency works, with a warning"},
		{fault.Warning("its disk fills more"), 200, "ok\nlog: warning: its disk fills more\n", "keys: ok\nlog: warning: its disk fills more\n", ""},
		{fmt.Errorf("/secret: %w", fault.Warning("its disk fills")), 503, "log: failing\n", "keys: ok\nlog: failing\n", "a dependency fails"},
		{errors.Join(fault.Warning("its disk fills"), errBroken), 503, "log: failing\n", "keys: ok\nlog: failing\n", ""},
		{fault.Warn("a", "b"), 200, "ok\nlog: warning: a; b\n", "keys: ok\nlog: warning: a; b\n", "a dependency works again,a dependency works, with a warning"},
		{fault.Warn(), 200, "ok\n", "keys: ok\nlog: ok\n", "a dependency's warning has ended"},
	} {
		err = step.err
		r.server.ready.at = time.Time{}
		r.server.ready.check(t.Context())
		for path, want := range map[string]string{"/readyz": step.plain, "/readyz?verbose": step.full} {
			response := r.send(t, http.MethodGet, path, nil)
			if got := text(t, response); response.StatusCode != step.code || got != want {
				t.Errorf("%v: %s: %d %q", step.err, path, response.StatusCode, got)
			}
		}
		if working := testutil.ToFloat64(r.server.ready.working.WithLabelValues("log")); working != metric.Bool(step.code == 200) {
			t.Errorf("%v: working is %v", step.err, working)
		}
		if warns := testutil.ToFloat64(r.server.ready.warns.WithLabelValues("log")); warns != metric.Bool(fault.Warns(step.err)) {
			t.Errorf("%v: warning is %v", step.err, warns)
		}
		health, problem := r.server.ready.health.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if problem != nil || (health.GetStatus() == healthpb.HealthCheckResponse_SERVING) != (step.code == 200) {
			t.Errorf("%v: gRPC says %v, %v", step.err, health, problem)
		}
		after := r.lines.String()
		var said []string
		for _, m := range regexp.MustCompile(`"?msg"?[=:]"(a dependency[^"]*)"`).FindAllStringSubmatch(after[len(before):], -1) {
			said = append(said, m[1])
		}
		if got := strings.Join(said, ","); got != step.lines {
			t.Errorf("%v: the log says %q, want %q", step.err, got, step.lines)
		}
		before = after
	}
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
