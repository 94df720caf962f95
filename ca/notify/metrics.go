package notify

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// What became of alerts: the label of mayfly_alerts_total.
const (
	outcomeSent   = "sent"
	outcomeFailed = "failed"
	outcomeLost   = "lost"
)

type metrics struct {
	queued, oldest *prometheus.GaugeVec
	alerts         *prometheus.CounterVec
	expired        prometheus.Counter
}

func newMetrics() metrics {
	of := []string{"target"}
	return metrics{
		prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mayfly_alerts_queued", Help: "Alerts that wait to be sent."}, of),
		prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mayfly_alerts_oldest_timestamp_seconds", Help: "Since when the oldest alert waits; 0 while none does."}, of),
		prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_alerts_total", Help: "Messages to targets, by outcome (sent, failed: they are sent again), and alerts that were lost, because too many wait (lost).",
		}, []string{"target", "outcome"}),
		prometheus.NewCounter(prometheus.CounterOpts{Name: "mayfly_alerts_expired_total", Help: "Alerts that were lost after waiting for a week."}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	return errors.Join(r.Register(m.queued), r.Register(m.oldest), r.Register(m.alerts), r.Register(m.expired))
}

// only has the series of these targets, and of no others.
func (m *metrics) only(targets map[string]*target) {
	m.queued.Reset()
	m.oldest.Reset()
	for name := range targets {
		for _, outcome := range []string{outcomeSent, outcomeFailed, outcomeLost} {
			m.alerts.WithLabelValues(name, outcome)
		}
	}
}
