package follow

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

type metrics struct {
	followed, size *prometheus.GaugeVec
	contradictions *prometheus.CounterVec
}

// newMetrics registers the metrics.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		followed: metric.Gauge("mayfly_follow_entries", "Entries of the log that were verified and kept in the store.", "log"),
		size:     metric.Gauge("mayfly_follow_log_entries", "Entries of the log itself, as it signed last.", "log"),
		contradictions: metric.Counter("mayfly_follow_contradictions_total",
			"Looks at which the log contradicted what it had signed, by kind (fork, back, withheld, entry). Any increase needs a person.", "log", "kind"),
	}
	return m, metric.Register(r, m.followed, m.size, m.contradictions)
}

// forget takes a log's gauges.
func (m *metrics) forget(url string) {
	m.followed.DeleteLabelValues(url)
	m.size.DeleteLabelValues(url)
}

func (m *metrics) show(s Status) {
	m.followed.WithLabelValues(s.URL).Set(float64(s.Followed))
	m.size.WithLabelValues(s.URL).Set(float64(s.Size))
	for _, kind := range kinds {
		count := m.contradictions.WithLabelValues(s.URL, kind)
		if c := (*Contradiction)(nil); errors.As(s.Err, &c) && c.Kind == kind {
			count.Inc()
		}
	}
}
