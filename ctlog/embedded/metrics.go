package embedded

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

type metrics struct {
	entries prometheus.Histogram
	seconds prometheus.Histogram
	failed  prometheus.Counter
	ungrown prometheus.Counter

	registry   prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics(r prometheus.Registerer, l *Log) (*metrics, error) {
	labels := prometheus.Labels{"log": l.description.URL}
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
		ungrown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_integration_failures_total", Help: "Times that stored entries couldn't become part of the tree.",
			ConstLabels: labels,
		}),
	}
	if r == nil {
		return m, nil
	}
	queued := metric.Read("mayfly_ctlog_queued_entries", "Entries that wait for the next batch.", labels, func() float64 { return float64(len(l.queue)) })
	m.registry = r
	for _, c := range slices.Concat([]prometheus.Collector{m.entries, m.seconds, m.failed, m.ungrown, queued},
		l.gauges(labels), l.scrub.Collectors(), l.witnesses.Collectors()) {
		if err := r.Register(c); err != nil {
			m.unregister()
			return nil, fmt.Errorf("registering the log's metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

// unregister takes the metrics of a log that is closed out of the registry: a service may
// go on without it, or open it again.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registry.Unregister(c)
	}
}

// gauges read the log when they are scraped. What can't be read is NaN, which
// no alarm mistakes for a healthy value.
func (l *Log) gauges(labels prometheus.Labels) []prometheus.Collector {
	gauge := func(name, help string, read func() (float64, error)) prometheus.Collector {
		return metric.Read(name, help, labels, func() float64 {
			value, err := read()
			if err != nil {
				return math.NaN()
			}
			return value
		})
	}
	return []prometheus.Collector{
		gauge("mayfly_ctlog_tree_size", "Entries that the published checkpoint covers.", func() (float64, error) {
			h, err := l.reads.HeadNow()
			return float64(h.Size), err
		}),
		gauge("mayfly_ctlog_checkpoint_age_seconds", "Age of the published checkpoint; a log that doesn't grow signs one every ten minutes.", func() (float64, error) {
			h, err := l.reads.HeadNow()
			return l.o.Now().Sub(h.Signed()).Seconds(), err
		}),
		gauge("mayfly_ctlog_unintegrated_entries", "Entries that are durable and not in the tree yet.", func() (float64, error) {
			return float64(len(l.backlog.now().entries)), nil
		}),
		gauge("mayfly_ctlog_merge_delay_seconds", "How long entries have been waiting for a checkpoint that covers them.", func() (float64, error) {
			delay, err := l.mergeDelay()
			return delay.Seconds(), err
		}),
		gauge("mayfly_ctlog_free_bytes", "Free space on the log's disk.", func() (float64, error) {
			free, err := l.o.free(string(l.dir))
			return float64(free), err
		}),
	}
}

func (m *metrics) batch(entries int, took time.Duration, err error) {
	if err != nil {
		m.failed.Inc()
		return
	}
	m.entries.Observe(float64(entries))
	m.seconds.Observe(took.Seconds())
}
