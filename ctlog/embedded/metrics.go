package embedded

import (
	"fmt"
	"math"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	entries prometheus.Histogram
	seconds prometheus.Histogram
	failed  prometheus.Counter

	// Of the witnesses; nil without any.
	offers     *prometheus.CounterVec
	rounds     *prometheus.HistogramVec
	sizes      *prometheus.GaugeVec
	cosigs     prometheus.Gauge
	registry   prometheus.Registerer
	registered []prometheus.Collector
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
	m.watch(l.config.Witnesses, labels)
	if r == nil {
		return m, nil
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mayfly_ctlog_queued_entries", Help: "Entries that wait for the next batch.", ConstLabels: labels,
	}, func() float64 { return float64(len(l.queue)) })
	collectors := append([]prometheus.Collector{m.entries, m.seconds, m.failed, queued}, l.gauges(labels)...)
	collectors = append(collectors, l.patrolGauges(labels)...)
	if m.offers != nil {
		collectors = append(collectors, m.offers, m.rounds, m.sizes, m.cosigs)
	}
	m.registry = r
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			m.end()
			return nil, fmt.Errorf("registering the log's metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

// end takes the metrics of a log that is closed out of the registry: a service may
// go on without it, or open it again.
func (m *metrics) end() {
	for _, c := range m.registered {
		m.registry.Unregister(c)
	}
}

// gauges read the log when they are scraped. What can't be read is NaN, which
// no alarm mistakes for a healthy value.
func (l *Log) gauges(labels prometheus.Labels) []prometheus.Collector {
	gauge := func(name, help string, read func() (float64, error)) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			value, err := read()
			if err != nil {
				return math.NaN()
			}
			return value
		})
	}
	return []prometheus.Collector{
		gauge("mayfly_ctlog_tree_size", "Entries that the published checkpoint covers.", func() (float64, error) {
			h, err := l.headNow()
			return float64(h.size), err
		}),
		gauge("mayfly_ctlog_checkpoint_age_seconds", "Age of the published checkpoint; a log that doesn't grow signs one every ten minutes.", func() (float64, error) {
			h, err := l.headNow()
			return l.o.Now().Sub(time.UnixMilli(int64(h.timestamp))).Seconds(), err
		}),
		gauge("mayfly_ctlog_free_bytes", "Free space on the log's disk.", func() (float64, error) {
			free, err := l.o.Free(l.store.dir)
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

// watch makes the metrics of the witnesses, with a series for every outcome.
func (m *metrics) watch(c ctlog.WitnessesConfig, labels prometheus.Labels) {
	if len(c.List) == 0 {
		return
	}
	m.offers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mayfly_ctlog_witness_offers_total", Help: "Checkpoints by what each witness made of them.", ConstLabels: labels,
	}, []string{"witness", "outcome"})
	m.rounds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "mayfly_ctlog_witness_seconds", Help: "Time from offering a checkpoint to a witness to its answer or its failure.",
		ConstLabels: labels, Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"witness"})
	m.sizes = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mayfly_ctlog_witness_tree_size", Help: "Entries of the last checkpoint that each witness cosigned for this process.", ConstLabels: labels,
	}, []string{"witness"})
	m.cosigs = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mayfly_ctlog_checkpoint_cosignatures", Help: "Cosignatures of the last checkpoint that was offered to the witnesses.", ConstLabels: labels,
	})
	for i := range c.List {
		v, err := c.List[i].Verifier()
		if err != nil {
			continue // newWitnesses refuses it
		}
		for _, o := range witnessOutcomes() {
			m.offers.WithLabelValues(v.Name(), string(o))
		}
		m.rounds.WithLabelValues(v.Name())
		m.sizes.WithLabelValues(v.Name())
	}
}

func (m *metrics) witnessed(name string, o witnessOutcome, took time.Duration) {
	m.offers.WithLabelValues(name, string(o)).Inc()
	if o != witnessResting {
		m.rounds.WithLabelValues(name).Observe(took.Seconds())
	}
}

func (m *metrics) witnessSize(name string, size uint64) {
	m.sizes.WithLabelValues(name).Set(float64(size))
}

func (m *metrics) cosignatures(count int) { m.cosigs.Set(float64(count)) }
