package inclusion

import (
	"time"

	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	pending, overdue, broken, oldest *prometheus.GaugeVec
	done                             *prometheus.CounterVec
	unread                           prometheus.Counter
}

// newMetrics registers the metrics.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		pending: metric.Gauge("mayfly_ctlog_promises_pending", "Issued certificates whose entry in the log has not been seen yet.", "log"),
		overdue: metric.Gauge("mayfly_ctlog_promises_overdue", "Pending certificates older than half of the log's merge delay. Anything above 0 needs a person.", "log"),
		broken:  metric.Gauge("mayfly_ctlog_promises_broken", "Pending certificates whose SCT was shown to be false. Anything above 0 needs a person.", "log"),
		oldest:  metric.Gauge("mayfly_ctlog_promise_oldest_seconds", "Age of the oldest pending certificate's SCT.", "log"),
		done:    metric.Counter("mayfly_ctlog_promises_kept_total", "Issued certificates whose entry was found and proven to be in the log.", "log"),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_ctlog_promises_unread_total", Help: "Times that a part of the audit trail couldn't be read, so that its promises weren't checked. Any increase needs a person.",
		}),
	}
	return m, metric.Register(r, m.pending, m.overdue, m.broken, m.oldest, m.done, m.unread)
}

// follow gives each log that is watched a series, and takes the gauges of the others.
func (m *metrics) follow(before, now map[[32]byte]*watched) {
	for _, g := range []*prometheus.GaugeVec{m.pending, m.overdue, m.broken, m.oldest} {
		for id, w := range before {
			if now[id] == nil {
				g.DeleteLabelValues(w.Description.URL)
			}
		}
		for _, w := range now {
			g.WithLabelValues(w.Description.URL)
		}
	}
	for _, w := range now {
		m.done.WithLabelValues(w.Description.URL)
	}
}

func (m *metrics) show(w *watched, oldest time.Duration) {
	url := w.Description.URL
	m.pending.WithLabelValues(url).Set(float64(len(w.pending)))
	m.overdue.WithLabelValues(url).Set(float64(w.overdue))
	m.broken.WithLabelValues(url).Set(float64(w.broken))
	m.oldest.WithLabelValues(url).Set(oldest.Seconds())
}
