package embedded

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	entries prometheus.Histogram
	seconds prometheus.Histogram
	failed  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, l *Log) (*metrics, error) {
	labels := prometheus.Labels{"log": l.about.URL}
	m := &metrics{
		entries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_ctlog_batch_entries", Help: "Entries that became durable together.",
			ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_ctlog_batch_seconds", Help: "Time to make a batch durable.",
			ConstLabels: labels, Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1},
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_batch_failures_total", Help: "Batches that the storage refused; no SCT left for them.",
			ConstLabels: labels,
		}),
	}
	if r == nil {
		return m, nil
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mayfly_ctlog_queued_entries", Help: "Entries that wait for the next batch.", ConstLabels: labels,
	}, func() float64 { return float64(len(l.queue)) })
	for _, c := range []prometheus.Collector{m.entries, m.seconds, m.failed, queued} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the log's metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) batch(entries int, took time.Duration, err error) {
	if err != nil {
		m.failed.Inc()
		return
	}
	m.entries.Observe(float64(entries))
	m.seconds.Observe(took.Seconds())
}
