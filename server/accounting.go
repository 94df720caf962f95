package server

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Stages of a request, the label of mayfly_request_seconds.
const (
	stageAuthenticate = "authenticate"
	stageProve        = "prove"
	stageIssue        = "issue"
	stageTotal        = "total"
)

// metrics are the Server's own. Every label value comes from a closed list, so
// that no client can make series.
type metrics struct {
	now       func() time.Time
	requests  *prometheus.CounterVec
	stages    map[string]prometheus.Observer
	panics    prometheus.Counter
	unaudited prometheus.Counter
	evicted   prometheus.Counter
	shed      *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, g *gate, now func() time.Time) (*metrics, error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mayfly_request_seconds",
		Help:    "Time spent in each stage of issuing requests; total is of every API request.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"stage"})
	m := &metrics{
		now: now,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_requests_total",
			Help: "Requests by route, edge (grpc, rest), HTTP status of the result, reason of a refusal (OK when none), and type of issuer.",
		}, []string{"route", "edge", "code", "reason", "issuer_type"}),
		stages: map[string]prometheus.Observer{},
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_panics_total", Help: "Requests that ended in a panic. Each is a defect.",
		}),
		unaudited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_refusals_unaudited_total", Help: "Refusals that could not be recorded in the audit trail.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_connections_evicted_total", Help: "Quiet connections closed to make room for new ones.",
		}),
	}
	m.shed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mayfly_rate_limited_total", Help: "Requests refused for a rate limit, by what the limit is on (address, principal, issuer).",
	}, []string{"limit"})
	for _, limit := range []string{limitAddress, limitPrincipal, limitIssuer, limitReads} {
		m.shed.WithLabelValues(limit)
	}
	for _, stage := range []string{stageAuthenticate, stageProve, stageIssue, stageTotal} {
		m.stages[stage] = seconds.WithLabelValues(stage)
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mayfly_requests_in_flight", Help: "Requests being served.",
	}, g.inFlight)
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, seconds, m.panics, m.unaudited, m.evicted, m.shed, inFlight} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// stage begins to time a stage; the function it returns ends it.
func (m *metrics) stage(name string) func() {
	begun := m.now()
	return func() { m.stages[name].Observe(m.now().Sub(begun).Seconds()) }
}

// limited counts f, a rate limit's refusal, if it is one, and returns it.
func (m *metrics) limited(f *fault.Error) *fault.Error {
	if f != nil {
		m.shed.WithLabelValues(f.Metadata["limit"]).Inc()
	}
	return f
}

// request counts the end of an API request.
func (m *metrics) request(c *call, f *fault.Error, took time.Duration) {
	issuerType := "none"
	if !c.who.IsZero() {
		issuerType = c.who.IssuerType()
	}
	code, reason := "200", "OK"
	if f != nil {
		a := answerTo(f, "")
		code, reason = itoa(a.http), string(a.reason)
	}
	m.requests.WithLabelValues(c.method.name, string(c.edge), code, reason, issuerType).Inc()
	m.stages[stageTotal].Observe(took.Seconds())
}

// page counts the end of a REST request outside the API.
func (m *metrics) page(route string, code int, reason fault.Reason) {
	if reason == "" {
		reason = "OK"
	}
	m.requests.WithLabelValues(route, string(edgeREST), itoa(code), string(reason), "none").Inc()
}
