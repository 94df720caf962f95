package kms

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcome is how a call to a KMS ended: a metric label, from a closed list.
type Outcome string

// The outcomes of calls that failed.
const (
	OutcomeThrottled   Outcome = "throttled"   // a quota is used up
	OutcomeDenied      Outcome = "denied"      // the principal may not
	OutcomeUnusable    Outcome = "unusable"    // disabled, deleted, not found
	OutcomeUnavailable Outcome = "unavailable" // no connection, or the service's own fault
	OutcomeWrong       Outcome = "wrong"       // an answer that doesn't verify
	OutcomeOther       Outcome = "other"

	outcomeOK       Outcome = "ok"
	outcomeTimeout  Outcome = "timeout"  // no answer in time
	outcomeCanceled Outcome = "canceled" // the caller went away
)

// Text is an error of this outcome in words for the operator. A call that is
// throttled or finds its service unavailable is made again.
func (o Outcome) Text(text string) Classified {
	return Classified{o, o == OutcomeThrottled || o == OutcomeUnavailable, text}
}

type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// newMetrics makes the metrics, or finds those that another key registered.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_kms_calls_total",
			Help: "Calls to key management services, each with all of its attempts, by backend, operation and outcome.",
		}, []string{"backend", "operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mayfly_kms_call_seconds",
			Help:    "Time that a call to a key management service took with all of its attempts, in seconds.",
			Buckets: []float64{.001, .0025, .005, .01, .02, .035, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 15},
		}, []string{"backend", "operation"}),
	}
	if r == nil {
		return m, nil
	}
	var err error
	if m.calls, err = shared(r, m.calls); err != nil {
		return nil, err
	}
	m.seconds, err = shared(r, m.seconds)
	return m, err
}

// shared registers c, or is the one that is registered already.
func shared[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	err := r.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if known, ok := already.ExistingCollector.(C); ok {
			return known, nil
		}
	}
	return c, err
}

func (m *metrics) observe(backend, operation string, o Outcome, took time.Duration) {
	m.calls.WithLabelValues(backend, operation, string(o)).Inc()
	m.seconds.WithLabelValues(backend, operation).Observe(took.Seconds())
}
