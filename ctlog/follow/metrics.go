package follow

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	followed, size *prometheus.GaugeVec
	contradictions *prometheus.CounterVec
}

// newMetrics registers the metrics.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"log"})
	}
	m := &metrics{
		followed: gauge("mayfly_follow_entries", "Entries of the log that were verified and kept in the store."),
		size:     gauge("mayfly_follow_log_entries", "Entries of the log itself, as it signed last."),
		contradictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_follow_contradictions_total",
			Help: "Looks at which the log contradicted what it had signed, by kind (fork, back, withheld, entry). Any increase needs a person.",
		}, []string{"log", "kind"}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.followed, m.size, m.contradictions} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
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
