package witness

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcome is a metric label from a closed list.
type outcome string

const (
	cosigned    outcome = "cosigned"
	refused     outcome = "refused"     // it answered, and gave no cosignature
	invalid     outcome = "invalid"     // its cosignature, or its answer, doesn't hold
	ahead       outcome = "ahead"       // it says that it has cosigned more than the log has
	unavailable outcome = "unavailable" // no answer in time
	resting     outcome = "resting"     // not asked, after failures
)

type metrics struct {
	offers       *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	sizes        *prometheus.GaugeVec
	cosignatures prometheus.Gauge
}

// newMetrics makes the metrics with a series for every witness and outcome.
func newMetrics(log string, witnesses []*witness) *metrics {
	labels := prometheus.Labels{"log": log}
	m := &metrics{
		offers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_ctlog_witness_offers_total", Help: "Checkpoints by what each witness made of them.", ConstLabels: labels,
		}, []string{"witness", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mayfly_ctlog_witness_seconds", Help: "Time from offering a checkpoint to a witness to its answer or its failure.",
			ConstLabels: labels, Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"witness"}),
		sizes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mayfly_ctlog_witness_tree_size", Help: "Entries of the last checkpoint that each witness cosigned for this process.", ConstLabels: labels,
		}, []string{"witness"}),
		cosignatures: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_ctlog_checkpoint_cosignatures", Help: "Cosignatures of the last checkpoint that was offered to the witnesses.", ConstLabels: labels,
		}),
	}
	for _, one := range witnesses {
		for _, o := range []outcome{cosigned, refused, invalid, ahead, unavailable, resting} {
			m.offers.WithLabelValues(one.name, string(o))
		}
		m.seconds.WithLabelValues(one.name)
		m.sizes.WithLabelValues(one.name)
	}
	return m
}

// Collectors are the client's metrics, for the log's registry.
func (w *Client) Collectors() []prometheus.Collector {
	if w == nil {
		return nil
	}
	return []prometheus.Collector{w.metrics.offers, w.metrics.seconds, w.metrics.sizes, w.metrics.cosignatures}
}

func (m *metrics) answered(name string, o outcome, took time.Duration) {
	m.offers.WithLabelValues(name, string(o)).Inc()
	if o != resting {
		m.seconds.WithLabelValues(name).Observe(took.Seconds())
	}
}
