package ca

import (
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

// newStages are the observers of all stages, looked up once: a lookup hashes its
// labels each time.
func newStages(r prometheus.Registerer) (all [stages]prometheus.Observer, err error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mayfly_ca_issuance_seconds",
		Help:    "Time that each stage of an issuance took, in seconds; a stage that failed isn't counted.",
		Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"stage"})
	for i, name := range stageNames {
		all[i] = seconds.WithLabelValues(name)
	}
	if r != nil {
		err = r.Register(seconds)
	}
	return all, err
}

// stopwatch times the stages of one issuance.
type stopwatch struct {
	issuer *Issuer
	last   time.Time
}

func (i *Issuer) stopwatch() stopwatch { return stopwatch{i, i.now()} }

// lap ends stage s and begins the next.
func (w *stopwatch) lap(s stage) {
	t := w.issuer.now()
	w.issuer.stages[s].Observe(t.Sub(w.last).Seconds())
	w.last = t
}
