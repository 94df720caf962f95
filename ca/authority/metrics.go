package authority

import (
	"bytes"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	expiry *prometheus.GaugeVec
	active *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mayfly_ca_authority_expiry_timestamp_seconds",
		Help: "When the first certificate of a listed authority's chain ends, in Unix seconds, by the authority's configured name.",
	}, []string{"authority"}), active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mayfly_ca_authority_active",
		Help: "1 for the listed authority that signs, 0 for the others, by the authority's configured name.",
	}, []string{"authority"})}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.expiry), r.Register(m.active))
}

// show shows the trusted authorities, and no other ones any more.
func (m *metrics) show(s *Set) {
	m.expiry.Reset()
	m.active.Reset()
	for _, t := range s.Trusted {
		m.expiry.WithLabelValues(t.Name).Set(float64(t.NotAfter.Unix()))
		m.active.WithLabelValues(t.Name).Set(0)
	}
	for _, t := range s.Trusted { // last, since issuing certificates of one ephemeral authority have one name
		if bytes.Equal(t.Chain[0], s.Active.Chain[0]) {
			m.expiry.WithLabelValues(t.Name).Set(float64(t.NotAfter.Unix()))
			m.active.WithLabelValues(t.Name).Set(1)
		}
	}
}

// registerSigner registers what shows how precertificates are signed.
func (f *InForce) registerSigner(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	inForce := func() *PrecertificateSigner {
		a := f.current.Load().Active
		return a.PrecertificateSigner(f.validity(a))
	}
	return errors.Join(
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_ca_signatures_per_certificate",
			Help: "Signatures of the active authority's key that a certificate costs: 1 with a precertificate signing certificate or without a log, else 2.",
		}, func() float64 { return float64(f.Signatures(inForce())) })),
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_ca_precertificate_signer_expiry_timestamp_seconds",
			Help: "When the precertificate signing certificate in force ends, in Unix seconds; 0 without one.",
		}, func() float64 {
			s := inForce()
			if s == nil {
				return 0
			}
			return float64(s.Certificate.NotAfter.Unix())
		})),
	)
}
