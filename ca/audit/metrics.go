package audit

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of a record, the second label of mayfly_audit_records_total.
const (
	outcomeDurable  = "durable"  // written and flushed
	outcomeFailed   = "failed"   // the storage refused it
	outcomeOverflow = "overflow" // too many records were waiting
)

// metrics counts what the package does. Labels are closed lists: 6 types × 3
// outcomes, and 2 files.
type metrics struct {
	records *prometheus.CounterVec
	batch   *prometheus.HistogramVec
	commit  *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_audit_records_total",
			Help: "Audit records by type (intent, issued, denied, failed, probed, admin) and outcome (durable, failed, overflow).",
		}, []string{"type", "outcome"}),
		batch: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mayfly_audit_batch_records",
			Help:    "Records made durable by one flush to the disk, by file (trail, refused).",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}, []string{"file"}),
		commit: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mayfly_audit_commit_seconds",
			Help:    "Time to write and flush one batch of audit records, by file (trail, refused).",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"file"}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.records), r.Register(m.batch), r.Register(m.commit))
}
