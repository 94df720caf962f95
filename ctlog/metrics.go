package ctlog

import (
	"context"
	"errors"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/prometheus/client_golang/prometheus"
)

// outcome is how a submission ended: a metric label from a closed list.
type outcome string

const (
	outcomeLogged   outcome = "logged"
	outcomeDown     outcome = "unavailable" // the log is down, slow or overloaded
	outcomeCanceled outcome = "canceled"    // another log was faster, or the caller went away
	outcomeFailed   outcome = "failed"      // anything else
	outcomeBad      outcome = "bad_sct"     // the log broke its word
)

func outcomeOf(err error) outcome {
	f, ok := errors.AsType[*fault.Error](err)
	switch {
	case errors.Is(err, context.Canceled):
		return outcomeCanceled
	case ok && f.Kind() == fault.Unavailable, errors.Is(err, context.DeadlineExceeded):
		return outcomeDown
	default:
		return outcomeFailed
	}
}

type metrics struct {
	submissions *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	bad         *prometheus.CounterVec
	end         *prometheus.GaugeVec
}

func newMetrics() *metrics {
	return &metrics{
		submissions: metric.Counter("mayfly_ctlog_submissions_total", "Submissions to a transparency log by outcome.", "log", "outcome"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mayfly_ctlog_submission_seconds",
			Help:    "Time from a submission to its verified SCT or its failure.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"log", "outcome"}),
		end: metric.Gauge("mayfly_ctlog_end_timestamp_seconds",
			"When a transparency log stops being used, in seconds since 1970; logs without an end are left out.", "log"),
		bad: metric.Counter("mayfly_ctlog_bad_sct_total",
			"SCTs that did not hold, by what was wrong. Any increase needs a person: the log breaks its word.", "log", "flaw"),
	}
}

// follow gives the logs that are in use now their series, so that an alarm on a bad SCT
// has a zero to rise from. Those that are no longer keep what was counted, but have no
// end to come.
func (m *metrics) follow(before, now []knownLog) {
	for _, one := range before {
		m.end.DeleteLabelValues(one.description.URL)
	}
	for _, one := range now {
		for _, f := range []flaw{flawLogID, flawTime, flawExtensions, flawSignature} {
			m.bad.WithLabelValues(one.description.URL, string(f))
		}
		if end := one.description.End; !end.IsZero() {
			m.end.WithLabelValues(one.description.URL).Set(float64(end.Unix()))
		}
	}
}
