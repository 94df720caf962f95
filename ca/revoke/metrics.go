package revoke

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	signed  *prometheus.CounterVec
	behind  prometheus.Gauge
	waiting prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, log *Log) (*metrics, error) {
	m := &metrics{
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_revocation_lists_signed_total", Help: "Lists of revoked certificates that were to be signed, by outcome (ok, failed).",
		}, []string{"outcome"}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_revocation_lists_behind", Help: "Authorities whose list lacks statements, or should have been signed again.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_revocation_waiting", Help: "Readers of the feed that wait for the next statement.",
		}),
	}
	m.signed.WithLabelValues("ok")
	m.signed.WithLabelValues("failed")
	if r == nil {
		return m, nil
	}
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mayfly_revocation_statements", Help: "Certificates that were revoked, for good.",
	}, func() float64 { return float64(log.Size()) })
	return m, errors.Join(r.Register(m.signed), r.Register(m.behind), r.Register(m.waiting), r.Register(size))
}
