// Package notify tells people and programs what concerns them: a certificate in their
// name, the first use of a workflow, a silence where there should be certificates, a
// revocation.
//
// What rules hold for (rules.go) goes into a durable outbox (outbox.go), in the very
// transaction in which the index keeps what caused it; revocations and silences are
// looked for. From there each target is sent its own (send.go), in order and at least
// once: by mail, or to a webhook or chat. Whatever a target does, it holds up neither the
// others nor the index, let alone issuing.
package notify

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
)

// MaxBytes bounds what is held in memory: by each target one message, as it lies in the
// store, as fields, and as it is sent.
const MaxBytes = maxTargets * 4 * digestBytes

// Options are what Alerts work with. All but Statements are required.
type Options struct {
	Source string // of the events: the CA's public URL
	// Known is until when the index knows of every certificate; zero: of none yet.
	Known      func() time.Time
	Index      *index.Index
	Statements Statements // nil: nothing is revoked
	Now        func() time.Time
	Logger     *slog.Logger
	Metrics    prometheus.Registerer
}

// What became of alerts: the label of mayfly_alerts_total.
const (
	outcomeSent   = "sent"
	outcomeFailed = "failed"
	outcomeLost   = "lost"
)

// Alerts take up what concerns somebody, and send it. They are safe for concurrent use.
type Alerts struct {
	Options
	store   *store.DB
	began   time.Time // what was logged before concerns nobody
	current atomic.Pointer[Loaded]
	jitter  func() float64 // in [0, 1)

	queued, oldest *prometheus.GaugeVec
	alerts         *prometheus.CounterVec
	expired        *prometheus.CounterVec

	mu  sync.Mutex
	all map[string]*status // by target, guarded by mu; that of "" is the last look's
}

// status is how a target stands.
type status struct {
	queued int
	err    error // of the last attempt
}

//go:embed schema/*.sql
var schema embed.FS

// New makes Alerts that do nothing before Use and Open.
func New(o Options) (*Alerts, error) {
	a := &Alerts{
		Options: o, jitter: rand.Float64, all: map[string]*status{},
		queued:  metric.Gauge("mayfly_alerts_queued", "Alerts that wait to be sent.", "target"),
		oldest:  metric.Gauge("mayfly_alerts_oldest_timestamp_seconds", "Since when the oldest alert waits; 0 while none does.", "target"),
		alerts:  metric.Counter("mayfly_alerts_total", "Messages to targets, by outcome (sent, failed: they are sent again), and alerts that were lost, because too many wait (lost).", "target", "outcome"),
		expired: metric.Counter("mayfly_alerts_expired_total", "Alerts that were lost after waiting for a week."),
	}
	a.expired.WithLabelValues()
	a.current.Store(&Loaded{})
	return a, metric.Register(o.Metrics, a.queued, a.oldest, a.alerts, a.expired)
}

// Open opens the outbox in a store, whose tables it makes. The store stays the caller's.
// It goes before Take and Run.
func (a *Alerts) Open(ctx context.Context, db *store.DB) error {
	a.store = db
	var began int64
	err := db.Migrate(ctx, "alerts", schema)
	if err == nil {
		err = db.Write(ctx, func(tx store.Handle) error {
			return tx.QueryRow(ctx, "INSERT INTO alerts_state VALUES (1, 0, ?, 0) ON CONFLICT (id) DO UPDATE SET began = alerts_state.began RETURNING began", a.Now().UnixMilli()).Scan(&began)
		})
	}
	a.began = time.UnixMilli(began)
	return err
}

// Loaded is a configuration that can be put in force.
type Loaded struct {
	rules   []rule
	targets map[string]*target
}

// Load makes ready what a checked configuration names, and reads its secrets once, so
// that a fault shows now. It adds every fault to f.
func Load(path string, c Config, f *setting.Faults) *Loaded {
	l := &Loaded{compile(setting.Join(path, "rules"), c.Rules, f), map[string]*target{}}
	for i, t := range c.Targets {
		made := &target{Target: t}
		if t.mails() {
			made.sender = newMailer(setting.Join(path, "smtp"), t.Email, c.SMTP, f)
		} else {
			made.sender = newPoster(setting.Index(setting.Join(path, "targets"), i), t, f)
		}
		l.targets[t.Name] = made
	}
	for i := range l.rules {
		for _, name := range l.rules[i].Targets {
			l.rules[i].targets = append(l.rules[i].targets, l.targets[name])
		}
	}
	return l
}

// Use puts a configuration in force. Nothing is shown of targets that it hasn't.
func (a *Alerts) Use(l *Loaded) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name := range a.current.Swap(l).targets {
		if l.targets[name] == nil {
			for _, of := range []*prometheus.MetricVec{a.queued.MetricVec, a.oldest.MetricVec, a.alerts.MetricVec} {
				of.DeletePartialMatch(prometheus.Labels{"target": name})
			}
			delete(a.all, name)
		}
	}
	for name := range l.targets {
		for _, outcome := range []string{outcomeSent, outcomeFailed, outcomeLost} {
			a.alerts.WithLabelValues(name, outcome)
		}
	}
}

// note changes how a target stands, if there is such a one.
func (a *Alerts) note(name string, change func(*status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name != "" && a.current.Load().targets[name] == nil {
		return // it was removed while something was on its way to it
	}
	if a.all[name] == nil {
		a.all[name] = &status{}
	}
	change(a.all[name])
}

var errFull = errors.New("more are lost")

// Ready is nil while the store answers and every target takes what it is sent.
func (a *Alerts) Ready(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(a.all)) {
		if s := a.all[name]; s.err != nil || s.queued >= maxQueued {
			errs = append(errs, fmt.Errorf("%s: %d alerts wait: %w", cmp.Or(name, "the outbox"), s.queued, cmp.Or(s.err, errFull)))
		}
	}
	return errors.Join(errs...)
}
