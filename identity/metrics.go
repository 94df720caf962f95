package identity

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/internal/metric"
)

// metrics are the verifier's own. Their labels are bounded by the
// configuration: an issuer that a pattern matched is never a label.
type metrics struct {
	fetches   *prometheus.CounterVec // by issuer_type and result
	denials   *prometheus.CounterVec // by rule
	undecided *prometheus.CounterVec // by rule and result
}

func newMetrics() *metrics {
	return &metrics{
		fetches: metric.Counter("mayfly_identity_key_fetches_total",
			"Fetches of issuers' signing keys, by the type of issuer and result (ok, error).", "issuer_type", "result"),
		denials: metric.Counter("mayfly_identity_denials_total",
			"Genuine tokens that policy refused, by the deny rule, or allow for the condition of the token's issuer.", "rule"),
		undecided: metric.Counter("mayfly_identity_undecided_total",
			"Genuine tokens for which a rule of the policy could be neither true nor false, by the rule and what became of it (refused, ignored).", "rule", "result"),
	}
}

func (m *metrics) fetched(t Type, err error) {
	result := map[bool]string{true: "ok", false: "error"}[err == nil]
	m.fetches.WithLabelValues(string(t), result).Inc()
}

var (
	readyDesc = prometheus.NewDesc("mayfly_identity_issuer_ready",
		"1 when the keys of a configured issuer are here and not too old.", []string{"issuer"}, nil)
	ageDesc = prometheus.NewDesc("mayfly_identity_issuer_keys_age_seconds",
		"Age of the keys of a configured issuer.", []string{"issuer"}, nil)
	failingDesc = prometheus.NewDesc("mayfly_identity_issuer_fetch_failing",
		"1 when the last fetch of the keys of a configured issuer failed.", []string{"issuer"}, nil)
)

// register registers m, and the status of each exact issuer, which is read when it is
// scraped, with r, which may be nil.
func (m *metrics) register(r prometheus.Registerer, status func() []oidc.Status) error {
	return metric.Register(r, m.fetches, m.denials, m.undecided, prometheus.CollectorFunc(func(ch chan<- prometheus.Metric) {
		for _, s := range status() {
			ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, metric.Bool(s.Ready), s.Name)
			ch <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, metric.Bool(s.Err != nil), s.Name)
			ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, s.KeysAge.Seconds(), s.Name)
		}
	}))
}
