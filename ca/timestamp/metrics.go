package timestamp

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

// granted is the status of a reply that has a timestamp; others have a failure's name.
const granted = "granted"

type metrics struct {
	replies *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, f *InForce) (*metrics, error) {
	m := &metrics{
		replies: metric.Counter("mayfly_timestamps_total",
			"Replies to queries for timestamps by status: granted, or why not, as RFC 3161 calls it; timeNotAvailable is for the clock.", "status"),
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
	return m, metric.Register(r, m.replies, m.seconds,
		metric.Read("mayfly_timestamp_authority_expiry_timestamp_seconds", "When the timestamp authority's certificate ends, in Unix seconds; 0 without one.", nil, func() float64 {
			if a := f.current.Load(); a != nil {
				return float64(a.end().Unix())
			}
			return 0
		}),
		metric.Read("mayfly_timestamp_clock_trusted", "0 while no timestamps are given because the clock was set, or is off, else 1.", nil, func() float64 {
			return metric.Bool(f.clock.trusted(f.bound()) == nil)
		}))
}
