package ca

import (
	"bytes"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stage is a part of an issuance, in the order that they come.
type stage int

const (
	stageProfile   stage = iota // profile and lint
	stageAdmission              // the turn at the signing quota
	stageAudit                  // the intent made durable
	stageSignPrecertificate
	stageLog
	stageSign
	stageCheck
	stageRecord // the outcome made durable
	stages
)

// stageNames are the values of the label `stage`: all that there ever are.
var stageNames = [stages]string{"profile", "admission", "audit", "sign_precertificate", "log", "sign", "check", "record"}

type metrics struct {
	stages [stages]prometheus.Observer // looked up once: a lookup hashes its labels each time
	expiry *prometheus.GaugeVec
	active *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mayfly_ca_issuance_seconds",
		Help:    "Time that each stage of an issuance took, in seconds; a stage that failed isn't counted.",
		Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"stage"})
	m := &metrics{expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mayfly_ca_authority_expiry_timestamp_seconds",
		Help: "When the first certificate of a listed authority's chain ends, in Unix seconds, by the authority's configured name.",
	}, []string{"authority"}), active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mayfly_ca_authority_active",
		Help: "1 for the listed authority that signs, 0 for the others, by the authority's configured name.",
	}, []string{"authority"})}
	for i, name := range stageNames {
		m.stages[i] = seconds.WithLabelValues(name)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{seconds, m.expiry, m.active} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// list shows the listed authorities, and no other ones any more.
func (m *metrics) list(a *Authorities) {
	m.expiry.Reset()
	m.active.Reset()
	show := func(l Listed, signs float64) {
		m.expiry.WithLabelValues(l.Name).Set(float64(l.NotAfter.Unix()))
		m.active.WithLabelValues(l.Name).Set(signs)
	}
	for _, l := range a.Listed {
		show(l, 0)
	}
	for _, l := range a.Listed { // last, since issuing certificates of one ephemeral authority have one name
		if bytes.Equal(l.Chain[0], a.Active.chain[0]) {
			show(l, 1)
		}
	}
}

// stopwatch times the stages of one issuance.
type stopwatch struct {
	now     func() time.Time
	metrics *metrics
	last    time.Time
}

func (i *Issuer) stopwatch() stopwatch { return stopwatch{i.now, i.metrics, i.now()} }

// lap ends stage s and begins the next.
func (w *stopwatch) lap(s stage) {
	t := w.now()
	w.metrics.stages[s].Observe(t.Sub(w.last).Seconds())
	w.last = t
}
