package timestamp

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// granted is the status of a reply that has a timestamp; others have a failure's name.
const granted = "granted"

type metrics struct {
	replies *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, f *InForce) (*metrics, error) {
	m := &metrics{
		replies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_timestamps_total",
			Help: "Replies to queries for timestamps by status: granted, or why not, as RFC 3161 calls it; timeNotAvailable is for the clock.",
		}, []string{"status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mayfly_timestamp_signing_seconds",
			Help:    "Time that the timestamp authority's key took for a signature, in seconds.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	m.replies.WithLabelValues(granted)
	for _, name := range failures {
		m.replies.WithLabelValues(name)
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.replies), r.Register(m.seconds),
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_timestamp_authority_expiry_timestamp_seconds",
			Help: "When the timestamp authority's certificate ends, in Unix seconds; 0 without one.",
		}, func() float64 {
			if a := f.current.Load(); a != nil {
				return float64(a.end().Unix())
			}
			return 0
		})),
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_timestamp_clock_trusted",
			Help: "0 while no timestamps are given because the clock was set, or is off, else 1.",
		}, func() float64 {
			if f.clock.trusted(f.bound()) != nil {
				return 0
			}
			return 1
		})))
}
