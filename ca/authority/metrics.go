package authority

import (
	"bytes"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

type metrics struct {
	expiry *prometheus.GaugeVec
	active *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		expiry: metric.Gauge("mayfly_ca_authority_expiry_timestamp_seconds",
			"When the first certificate of a listed authority's chain ends, in Unix seconds, by the authority's configured name.", "authority"),
		active: metric.Gauge("mayfly_ca_authority_active",
			"1 for the listed authority that signs, 0 for the others, by the authority's configured name.", "authority"),
	}
	return m, metric.Register(r, m.expiry, m.active)
}

// show shows the trusted authorities, and no other ones any more.
func (m *metrics) show(s *Set) {
	m.expiry.Reset()
	m.active.Reset()
	for _, active := range []bool{false, true} { // which is last, since issuing certificates of one ephemeral authority have one name
		for _, t := range s.Trusted {
			if !active || bytes.Equal(t.Chain[0], s.Active.Chain[0]) {
				m.expiry.WithLabelValues(t.Name).Set(float64(t.NotAfter.Unix()))
				m.active.WithLabelValues(t.Name).Set(metric.Bool(active))
			}
		}
	}
}

// registerSigner registers what shows how precertificates are signed.
func (f *InForce) registerSigner(r prometheus.Registerer) error {
	inForce := func() *PrecertificateSigner {
		a := f.current.Load().Active
		return a.PrecertificateSigner(f.validity(a))
	}
	return metric.Register(r,
		metric.Read("mayfly_ca_signatures_per_certificate",
			"Signatures of the active authority's key that a certificate costs: 1 with a precertificate signing certificate or without a log, else 2.",
			nil, func() float64 { return float64(f.Signatures(inForce())) }),
		metric.Read("mayfly_ca_precertificate_signer_expiry_timestamp_seconds",
			"When the precertificate signing certificate in force ends, in Unix seconds; 0 without one.", nil, func() float64 {
				if s := inForce(); s != nil {
					return float64(s.Certificate.NotAfter.Unix())
				}
				return 0
			}),
	)
}
