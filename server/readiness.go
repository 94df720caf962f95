package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	"github.com/mayfly-ca/mayfly/internal/wait"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

const (
	// checkTimeout bounds the check of all dependencies.
	checkTimeout = 2 * time.Second
	// checkValid is how long a good result answers further probes, so that
	// probing can't burden a dependency. A bad one is soon asked about again: a
	// service that works must not be passed over because it just began to.
	checkValid  = time.Second
	failedValid = 50 * time.Millisecond
	// checkInterval is how often gRPC's health state is brought up to date while
	// all is well, and failedInterval while it isn't.
	checkInterval  = 2 * time.Second
	failedInterval = 100 * time.Millisecond
	// startTime is how long after the first check a dependency that has never
	// worked is starting, not failing, in the log's eyes.
	startTime = 3 * time.Second
)

// readiness knows which dependencies work, for /readyz and grpc.health.v1.
type readiness struct {
	inFlight *inFlightLimit
	now      func() time.Time
	logger   *slog.Logger
	health   *health.Server
	working  *prometheus.GaugeVec // what the last check found
	warns    *prometheus.GaugeVec

	mu     sync.Mutex // held during a check: probes that come meanwhile share its result
	began  time.Time  // the first check
	at     time.Time  // the last one
	states []state    // replaced whole by each check
}

// state is how one dependency stands.
type state struct {
	Dependency
	err    error     // of the last check
	logged condition // what the log last said of it
}

// condition is what the log says of a dependency: only a change is worth a line.
type condition int

const (
	starting condition = iota // nothing yet
	failing
	warning
	working
)

func (s state) condition() condition {
	switch {
	case s.err == nil:
		return working
	case fault.Warns(s.err):
		return warning
	default:
		return failing
	}
}

func newReadiness(dependencies []Dependency, inFlight *inFlightLimit, now func() time.Time, logger *slog.Logger) (*readiness, error) {
	r := &readiness{inFlight: inFlight, now: now, logger: logger, health: health.NewServer(), working: metric.Gauge("mayfly_dependency_working",
		"1 when what issuing needs worked at its last check, 0 when it failed, by the name that /readyz has for it.", "dependency"),
		warns: metric.Gauge("mayfly_dependency_warning", "1 when what issuing needs works but calls for an operator, by the name that /readyz has for it.", "dependency")}
	names := map[string]bool{"": true}
	for _, d := range dependencies {
		if d.Check == nil || names[d.Name] {
			return nil, fmt.Errorf("server: dependency %q has no name of its own or no check", d.Name)
		}
		names[d.Name] = true
		r.states = append(r.states, state{Dependency: d})
	}
	r.setHealth(false) // until the first check
	return r, nil
}

// Ready reports whether every dependency that counts works now. Unlike a probe it
// takes no earlier failure for an answer, and what it finds probes are told too.
func (s *Server) Ready(ctx context.Context) bool {
	s.ready.mu.Lock()
	if !allWork(s.ready.states) {
		s.ready.at = time.Time{}
	}
	s.ready.mu.Unlock()
	return allWork(s.ready.check(ctx))
}

// check asks every dependency, at once. gRPC's health follows.
func (r *readiness) check(ctx context.Context) []state {
	r.mu.Lock()
	defer r.mu.Unlock()
	valid := failedValid
	if allWork(r.states) {
		valid = checkValid
	}
	if r.began.IsZero() {
		r.began = r.now()
	} else if r.now().Sub(r.at) < valid {
		return r.states
	}
	// A probe that goes away early must not spoil the result for others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	states := slices.Clone(r.states)
	var wg sync.WaitGroup
	for i := range states {
		wg.Go(func() { states[i].err = guardedCheck(ctx, states[i].Dependency) })
	}
	wg.Wait()
	for i := range states {
		if s := &states[i]; !s.Informational {
			r.working.WithLabelValues(s.Name).Set(metric.Bool(s.condition() != failing))
			r.warns.WithLabelValues(s.Name).Set(metric.Bool(s.condition() == warning))
			r.logChange(ctx, s)
		}
	}
	r.states, r.at = states, r.now()
	r.setHealth(allWork(states) && !r.inFlight.draining())
	return states
}

func allWork(states []state) bool {
	return !slices.ContainsFunc(states, func(s state) bool { return s.condition() == failing && !s.Informational })
}

// guardedCheck asks d; a panic in it is a failure.
func guardedCheck(ctx context.Context, d Dependency) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return d.Check(ctx)
}

// logChange writes a line when a dependency begins to fail or to warn, and when that has
// ended. What has never worked gets some time to start before it counts.
func (r *readiness) logChange(ctx context.Context, s *state) {
	was, is := s.logged, s.condition()
	if is == was || is != working && was == starting && r.now().Sub(r.began) < startTime {
		return
	}
	s.logged = is
	about := slog.String("dependency", s.Name)
	switch {
	case is == failing:
		r.logger.LogAttrs(ctx, slog.LevelError, "a dependency fails", about, slog.Any("error", s.err))
	case was == failing:
		r.logger.LogAttrs(ctx, slog.LevelInfo, "a dependency works again", about)
	case was == warning:
		r.logger.LogAttrs(ctx, slog.LevelInfo, "a dependency's warning has ended", about)
	}
	if is == warning {
		r.logger.LogAttrs(ctx, slog.LevelWarn, "a dependency works, with a warning", about, slog.Any("warning", s.err))
	}
}

// setHealth sets what grpc.health.v1 says, of the whole and of each service that issues.
func (r *readiness) setHealth(ready bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range []string{"", fulciov2.CA_ServiceDesc.ServiceName, fulciov1beta.CA_ServiceDesc.ServiceName} {
		r.health.SetServingStatus(service, status)
	}
}

// watch keeps grpc.health.v1 up to date until ctx ends.
func (r *readiness) watch(ctx context.Context) {
	for next := time.Duration(0); wait.For(ctx, next) == nil; {
		next = checkInterval
		if !allWork(r.check(ctx)) {
			next = failedInterval
		}
	}
}

// healthPage is /healthz: the process answers.
func healthPage(w *timedReply, _ *http.Request) *fault.Error {
	writePlain(w, http.StatusOK, "ok\n")
	return nil
}

// Standing is how a dependency stands.
type Standing struct {
	Name          string
	Works         bool
	Informational bool     // certificates can be issued without it
	Detail        []string // for anybody to read
}

// Standings says how every dependency stands, as `/readyz?verbose` does.
func (s *Server) Standings(ctx context.Context) (all []Standing) {
	for _, d := range s.ready.check(ctx) {
		if d.Informational { // not as it was a moment ago: its detail isn't either
			d.err = guardedCheck(ctx, d.Dependency)
		}
		one := Standing{Name: d.Name, Works: d.condition() != failing, Informational: d.Informational}
		if d.condition() == warning {
			one.Detail = []string{"warning: " + d.err.Error()}
		}
		if d.Detail != nil {
			one.Detail = append(one.Detail, d.Detail()...)
		}
		all = append(all, one)
	}
	return all
}

// readyPage is /readyz: 200, or 503 with the names of what fails, and the warnings
// either way; with `?verbose` every dependency by name, with its detail.
func (s *Server) readyPage(w *timedReply, r *http.Request) *fault.Error {
	var text strings.Builder
	code, verbose := http.StatusOK, r.URL.Query().Has("verbose")
	for _, d := range s.ready.check(r.Context()) {
		if d.Informational && verbose { // not as it was a moment ago: its detail isn't either
			d.err = guardedCheck(r.Context(), d.Dependency)
		}
		switch {
		case d.condition() == failing && !d.Informational:
			code = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "%s: failing\n", d.Name)
		case d.condition() == warning:
			fmt.Fprintf(&text, "%s: warning: %v\n", d.Name, d.err)
		case verbose && d.err != nil:
			fmt.Fprintf(&text, "%s: failing, but certificates can be issued\n", d.Name)
		case verbose:
			fmt.Fprintf(&text, "%s: ok\n", d.Name)
		}
		if verbose && d.Detail != nil {
			for _, line := range d.Detail() {
				fmt.Fprintf(&text, "  %s\n", line)
			}
		}
	}
	if s.inFlight.draining() {
		code = http.StatusServiceUnavailable
		text.WriteString("shutdown: failing\n")
	}
	said := text.String()
	if code == http.StatusOK && !verbose {
		said = "ok\n" + said
	}
	if code != http.StatusOK {
		s.with.Logger.LogAttrs(r.Context(), slog.LevelDebug, "not ready",
			slog.String("request_id", requestid.From(r.Context())), slog.String("error", "not ready"))
	}
	writePlain(w, code, said)
	return nil
}

// writePlain answers with a text.
func writePlain(w http.ResponseWriter, code int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if code == http.StatusServiceUnavailable {
		h.Set("Retry-After", "5")
	}
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}
