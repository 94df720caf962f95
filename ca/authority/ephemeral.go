package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The bounds of an ephemeral issuing certificate's life: long enough to be
// published ahead and to outlast a KMS that is down, short enough that nobody
// keeps what a stolen memory is good for.
const (
	minEphemeral     = 24 * time.Hour
	defaultEphemeral = 72 * time.Hour
	maxEphemeral     = 30 * 24 * time.Hour

	defaultPublishAhead = 24 * time.Hour
)

// maxValidEphemeral bounds how many issuing certificates are valid at a time: a
// service that starts over and over would fill its clients' trusted root.
const maxValidEphemeral = 200

// EphemeralConfig says how `mode: ephemeral` renews its issuing certificates.
type EphemeralConfig struct {
	// Lifetime of an issuing certificate: from 24h to 720h, 72h by default. It ends
	// with the signing CA's at the latest.
	Lifetime time.Duration `yaml:"lifetime,omitempty"`
	// PublishAhead is how long a new issuing certificate is in the trusted root and
	// the trust bundle before it issues, while the old one goes on: 24h by default,
	// at most half of the lifetime. Clients must fetch the trusted root as often.
	PublishAhead time.Duration `yaml:"publish_ahead,omitempty"`
	// AcceptUnlisted lets a new issuing certificate issue at once where there is no
	// other: at every start, since the key before is gone with its process, and
	// after a KMS was down for longer than the old one lasted. Clients with an older
	// trusted root can't verify what it signs. Without it, a start issues nothing
	// before publish_ahead has passed.
	AcceptUnlisted bool `yaml:"accept_unlisted,omitempty"`
	// History is the folder of all issuing certificates, past ones included, which
	// stay listed. Nothing in it is secret. Replicas must share it, or clients of
	// one don't learn of the others' certificates.
	History setting.Path `yaml:"history,omitempty"`
}

func (c *EphemeralConfig) lifetime() time.Duration {
	if c.Lifetime == 0 {
		return defaultEphemeral
	}
	return c.Lifetime
}

func (c *EphemeralConfig) publishAhead() time.Duration {
	if c.PublishAhead == 0 {
		return defaultPublishAhead
	}
	return c.PublishAhead
}

// slack is how long before it must the next certificate is made: what a KMS may
// be down without anybody noticing.
func (c *EphemeralConfig) slack() time.Duration { return (c.lifetime() - c.publishAhead()) / 3 }

func (c *EphemeralConfig) check(path string, f *setting.Faults) {
	if l := c.lifetime(); l < minEphemeral || l > maxEphemeral || l%time.Second != 0 {
		f.Add(setting.Join(path, "lifetime"), "%v is out of bounds: from %v to %v, in whole seconds", l, minEphemeral, maxEphemeral)
	} else if a := c.publishAhead(); a < time.Minute || a > l/2 {
		f.Add(setting.Join(path, "publish_ahead"), "%v is out of bounds: from 1m to half of the lifetime (%v)", a, l/2)
	}
	if c.History == "" {
		f.Add(setting.Join(path, "history"), "required with `mode: ephemeral`: a folder for the issuing certificates, which verifiers need for as long as their signatures count")
	}
}

// certifier is what makes an authority one that certifies ephemeral issuing CAs
// and signs no leaf.
type certifier struct {
	config  EphemeralConfig
	parent  []*x509.Certificate
	history *history
}

// newCertifier reads the history, and adds what is wrong with it.
func newCertifier(c EphemeralConfig, parent []*x509.Certificate, path string, f *setting.Faults) *certifier {
	m := &certifier{config: c, parent: parent, history: &history{dir: string(c.History), parent: parent}}
	if _, err := m.history.refresh(); err != nil {
		f.Add(setting.Join(path, "ephemeral.history"), "%v", err)
	}
	return m
}

// IsEphemeral reports whether a certifies ephemeral issuing CAs, by StartEphemeral,
// and signs no leaf itself.
func (a *Authority) IsEphemeral() bool { return a.certifier != nil }

// EphemeralOptions are what an Ephemeral works with.
type EphemeralOptions struct {
	// Lifetime is that of the leaves.
	Lifetime time.Duration
	// Auditor is required: no record, no signature.
	Auditor Auditor
	Now     func() time.Time
	Logger  *slog.Logger
	// Metrics takes the package's metrics; nil leaves them unregistered.
	Metrics prometheus.Registerer
	// Wake makes Run look at what is due, beside the times that it knows; may be nil.
	Wake <-chan time.Time
}

// Ephemeral keeps an authority in issuing certificates: it makes each before the
// one before it ends, has it listed, and puts it in force when it has been listed
// for long enough. Keys are made here, never leave memory, and end with the
// process.
type Ephemeral struct {
	*certifier

	signing *Authority // the signing CA
	trail   trail
	leaf    time.Duration
	now     func() time.Time
	logger  *slog.Logger
	metrics *ephemeralMetrics
	wake    <-chan time.Time

	mu      sync.Mutex
	current *generation // never nil
	next    *generation // nil until the next is made
	renewal failures
	listing error // of the history, or of putting it in force
}

// failures are the attempts at one thing that failed since the last success.
type failures struct {
	count int
	err   error
	again time.Time // when to try it again
}

// How long a renewal may take, and the waits between attempts: they double.
const (
	renewalTime  = 30 * time.Second
	firstRetry   = time.Minute
	longestRetry = 30 * time.Minute
)

// StartEphemeral makes the first issuing certificate of a, which IsEphemeral: one
// signature by the signing CA's key. The error names the step. From then on
// Authorities has it, and Run renews it.
func StartEphemeral(ctx context.Context, a *Authority, o EphemeralOptions) (*Ephemeral, error) {
	if !a.IsEphemeral() {
		return nil, errors.New("ca: an authority that isn't ephemeral can't be started as one")
	}
	if o.Auditor == nil {
		return nil, errors.New("ca: no auditor: nothing is signed without a record")
	}
	e := &Ephemeral{certifier: a.certifier, signing: a, leaf: o.Lifetime, now: o.Now, logger: o.Logger, wake: o.Wake}
	e.trail = trail{o.Auditor, o.Now, o.Logger}
	var err error
	if e.metrics, err = newEphemeralMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("ca: registering metrics: %w", err)
	}
	if err := e.history.prepare(); err != nil {
		return nil, fmt.Errorf("ca: the history of issuing certificates: %w", err)
	}
	if err := e.few(); err != nil {
		return nil, err
	}
	wait := e.config.publishAhead()
	if e.config.AcceptUnlisted {
		wait = 0
	}
	if e.current, err = e.make(ctx, wait); err != nil {
		return nil, fmt.Errorf("ca: the first ephemeral issuing certificate: %w", err)
	}
	e.metrics.show(e.current)
	if wait > 0 {
		e.logger.WarnContext(ctx, "nothing is issued before the new issuing certificate has been listed for long enough: `accept_unlisted: true` would issue at once",
			slog.Time("issues_from", e.current.from), slog.Duration("publish_ahead", wait))
	}
	return e, nil
}

// few refuses to start when a great many certificates are valid already.
func (e *Ephemeral) few() error {
	valid := 0
	for _, c := range e.history.all() {
		if e.now().Before(c.NotAfter) {
			valid++
		}
	}
	if valid >= maxValidEphemeral {
		return fmt.Errorf("ca: %d ephemeral issuing certificates are valid already, and each start lists another: find out why this service starts over and over, or use mode sealed", valid)
	}
	return nil
}

// renewAt is when the next certificate is made.
func (e *Ephemeral) renewAt() time.Time {
	return e.current.until.Add(-e.config.publishAhead() - e.config.slack())
}

// step does what is due: reads what replicas have added, makes the next
// certificate, puts it in its predecessor's place. It reports whether the
// Authorities have changed.
func (e *Ephemeral) step(ctx context.Context) (changed bool) {
	changed, err := e.history.refresh()
	if err != nil && (e.listing == nil || e.listing.Error() != err.Error()) {
		e.logger.ErrorContext(ctx, "the history of issuing certificates can't be read; what was known of it stays listed", slog.Any("error", err))
	}
	e.set(func() { e.listing = err })
	now := e.now()
	if e.next == nil && !now.Before(e.renewAt()) && !now.Before(e.renewal.again) {
		changed = e.renew(ctx) || changed
	}
	return e.succeed(ctx, e.now()) || changed
}

// renew makes the next certificate.
func (e *Ephemeral) renew(ctx context.Context) bool {
	g, err := e.make(ctx, e.config.publishAhead())
	if err != nil {
		if ctx.Err() != nil {
			return false // the service ends
		}
		e.metrics.renewals.WithLabelValues("failed").Inc()
		wait := min(firstRetry<<min(e.renewal.count, 10), longestRetry)
		e.set(func() { e.renewal = failures{count: e.renewal.count + 1, err: err, again: e.now().Add(wait)} })
		e.logger.WarnContext(ctx, "the next issuing certificate can't be made; the present one goes on",
			slog.Time("issues_until", e.current.until), slog.Int("attempts", e.renewal.count), slog.Duration("again_in", wait), slog.Any("error", err))
		return false
	}
	e.metrics.renewals.WithLabelValues("ok").Inc()
	e.set(func() { e.next, e.renewal = g, failures{} })
	return true
}

// succeed puts the next certificate in force when it is its time, or when the
// present one is over and the operator accepts that.
func (e *Ephemeral) succeed(ctx context.Context, now time.Time) bool {
	switch {
	case e.next == nil:
		return false
	case !now.Before(e.next.from):
	case now.After(e.current.until) && e.config.AcceptUnlisted:
		e.logger.WarnContext(ctx, "the new issuing certificate issues before it has been listed for long enough: there is no other", slog.Time("due", e.next.from))
		e.set(func() { e.next = e.next.starting(e.next.certificate.NotBefore) })
	default:
		return false
	}
	e.set(func() { e.current, e.next = e.next, nil })
	e.metrics.show(e.current)
	return true
}

// set changes the state. Run's goroutine alone does, so that it may read without
// the lock; whoever asks from elsewhere never waits for a KMS.
func (e *Ephemeral) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// due is when step has something to do by itself.
func (e *Ephemeral) due() time.Time {
	if e.next == nil {
		if e.renewal.again.After(e.renewAt()) {
			return e.renewal.again
		}
		return e.renewAt()
	}
	if over := e.current.until.Add(time.Second); e.config.AcceptUnlisted && over.Before(e.next.from) {
		return over
	}
	return e.next.from
}

// historyInterval is how often what replicas have added is looked for.
const historyInterval = time.Minute

// Run keeps the authority in certificates until ctx ends. put puts Authorities in
// force, documents first; it is called again until it succeeds.
func (e *Ephemeral) Run(ctx context.Context, put func(context.Context) error) error {
	pending := false
	for {
		if wait.OrWoken(ctx, min(historyInterval, e.due().Sub(e.now())), e.wake) != nil {
			return nil
		}
		if !e.step(ctx) && !pending {
			continue
		}
		err := put(ctx)
		if pending = err != nil; pending && ctx.Err() == nil {
			e.logger.ErrorContext(ctx, "a change of issuing certificates can't be put in force; it is tried again", slog.Any("error", err))
			e.postpone()
		}
	}
}

// postpone keeps a certificate that couldn't be listed from issuing on time.
func (e *Ephemeral) postpone() {
	e.set(func() {
		e.listing = errors.New("the documents for clients couldn't be renewed")
		if e.next != nil {
			e.next = e.next.starting(e.now().Add(historyInterval + e.config.publishAhead()))
		}
	})
}

// Authorities are base with e's issuing certificates in place of the signing CA's
// own: what is listed, and the one that signs where the signing CA is the active.
func (e *Ephemeral) Authorities(base *Authorities) *Authorities {
	e.mu.Lock()
	current := e.current.authority
	e.mu.Unlock()
	next := &Authorities{Active: base.Active, Records: base.Records}
	if base.Active.certifier == e.certifier {
		next.Active = current
	}
	for _, l := range base.Listed {
		if !bytes.Equal(l.Chain[0], e.parent[0].Raw) {
			next.Listed = append(next.Listed, l)
			continue
		}
		for _, c := range e.certificates() {
			next.Listed = append(next.Listed, e.listed(l.Name, c))
		}
	}
	next.Sort()
	return next
}

// listed is an issuing certificate as the documents show it, for as long as it is valid.
func (m *certifier) listed(name string, c *x509.Certificate) Listed {
	l := Listed{Name: name, Chain: [][]byte{c.Raw}, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Renewed: true}
	for _, p := range m.parent {
		l.Chain = append(l.Chain, p.Raw)
	}
	l.Start, l.End = l.NotBefore, l.NotAfter
	return l
}

// certificates are all that clients are to know, past ones included, in the order
// of their start.
func (e *Ephemeral) certificates() []*x509.Certificate {
	all := e.history.all()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range []*generation{e.current, e.next} { // they count even if somebody has emptied the folder
		if g != nil && !slices.ContainsFunc(all, g.certificate.Equal) {
			all = append(all, g.certificate)
		}
	}
	return all
}

// Ready is nil unless the next issuing certificate is due and can't be made, or
// others' can't be read: the present one still issues, but not for ever.
func (e *Ephemeral) Ready(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.renewal.err, e.listing)
}

// Detail says how things stand, in words that anybody may read.
func (e *Ephemeral) Detail() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	lines := []string{fmt.Sprintf("issues from %s until %s", stamp(e.current.from), stamp(e.current.until))}
	if e.next != nil {
		lines = append(lines, "the next is listed, and issues from "+stamp(e.next.from))
	}
	if e.renewal.count > 0 {
		lines = append(lines, fmt.Sprintf("the next was due at %s; %d attempts failed, the next attempt is at %s", stamp(e.renewAt()), e.renewal.count, stamp(e.renewal.again)))
	}
	return lines
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

type ephemeralMetrics struct {
	renewals *prometheus.CounterVec
	until    prometheus.Gauge
}

func newEphemeralMetrics(r prometheus.Registerer) (*ephemeralMetrics, error) {
	m := &ephemeralMetrics{
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_ca_ephemeral_renewals_total", Help: "Attempts to make the next ephemeral issuing certificate, by outcome (ok, failed).",
		}, []string{"outcome"}),
		until: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_ca_ephemeral_issues_until_timestamp_seconds", Help: "When the present ephemeral issuing certificate can issue no more, in Unix seconds.",
		}),
	}
	m.renewals.WithLabelValues("ok")
	m.renewals.WithLabelValues("failed")
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.renewals), r.Register(m.until))
}

func (m *ephemeralMetrics) show(g *generation) { m.until.Set(float64(g.until.Unix())) }
