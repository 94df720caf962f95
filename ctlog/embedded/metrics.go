package embedded

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
)

type metrics struct {
	entries, seconds prometheus.Histogram
	failed, ungrown  prometheus.Counter
	// unregister takes the metrics of a log that is closed out of the registry: a service
	// may go on without it, or open it again.
	unregister func()
}

func newMetrics(r prometheus.Registerer, l *Log) (*metrics, error) {
	m := &metrics{
		entries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_ctlog_batch_entries", Help: "Entries that became durable together.", Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_ctlog_batch_seconds", Help: "Time to make a batch durable.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1},
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_batch_failures_total", Help: "Batches that the storage refused; no SCT left for them.",
		}),
		ungrown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_integration_failures_total", Help: "Times that stored entries couldn't become part of the tree.",
		}),
		unregister: func() {},
	}
	if r == nil {
		return m, nil
	}
	all := prometheus.NewRegistry() // it is registered, and taken out, as one
	all.MustRegister(slices.Concat([]prometheus.Collector{m.entries, m.seconds, m.failed, m.ungrown}, l.gauges(), l.scrub.Collectors(), l.witnesses.Collectors())...)
	r = prometheus.WrapRegistererWith(prometheus.Labels{"log": l.description.URL}, r)
	if err := r.Register(all); err != nil {
		return nil, fmt.Errorf("registering the log's metrics: %w", err)
	}
	m.unregister = func() { r.Unregister(all) }
	return m, nil
}

// gauges read the log when they are scraped.
func (l *Log) gauges() []prometheus.Collector {
	return []prometheus.Collector{
		metric.Read("mayfly_ctlog_queued_entries", "Entries that wait for the next batch.", nil, func() float64 { return float64(len(l.queue)) }),
		metric.Read("mayfly_ctlog_tree_size", "Entries that the published checkpoint covers.", nil, func() float64 { return float64(l.backlog.now().published.Size) }),
		metric.Read("mayfly_ctlog_checkpoint_age_seconds", "Age of the published checkpoint; a log that doesn't grow signs one every ten minutes.", nil,
			func() float64 { return l.o.Now().Sub(l.backlog.now().published.Signed()).Seconds() }),
		metric.Read("mayfly_ctlog_unintegrated_entries", "Entries that are durable and not in the tree yet.", nil, func() float64 { return float64(len(l.backlog.now().entries)) }),
		metric.Read("mayfly_ctlog_merge_delay_seconds", "How long entries have been waiting for a checkpoint that covers them.", nil, func() float64 { return l.mergeDelay().Seconds() }),
		metric.Read("mayfly_ctlog_free_bytes", "Free space on the log's disk.", nil, func() float64 {
			free, err := l.o.free(string(l.dir))
			if err != nil {
				return math.NaN() // which no alarm mistakes for a healthy value
			}
			return float64(free)
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

// freeBytes is how much a writer without privileges may still put on the disk
// that holds the path.
func freeBytes(path string) (uint64, error) {
	free, err := durable.FreeBytes(path)
	if err != nil {
		err = fmt.Errorf("asking how much of the log's disk is free: %w", err)
	}
	return free, err
}

// lowerFloor is the part of the configured floor below which the log takes nothing:
// what it has promised needs room in the tree.
const lowerFloor = 4

// room is a [fault.Warning] when less of the log's disk is free than the configured
// floor, and another error where nothing may be taken any more.
func (l *Log) room() error {
	if l.config.MinFreeMB <= 0 {
		return nil
	}
	free, err := l.o.free(string(l.dir))
	if err != nil {
		return err
	}
	switch floor := uint64(l.config.MinFreeMB) << 20; {
	case free < floor/lowerFloor:
		return fmt.Errorf("the log's disk has %d MiB free, less than a quarter of its floor of %d MiB (min_free_mb): it takes nothing more", free>>20, l.config.MinFreeMB)
	case free < floor:
		return fault.Warning(fmt.Sprintf("its disk has %d MiB free, less than its floor of %d MiB (min_free_mb); below a quarter of that it takes no entries",
			free>>20, l.config.MinFreeMB))
	}
	return nil
}
