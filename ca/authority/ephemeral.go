package authority

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// maxValidEphemeral bounds how many issuing certificates are valid at a time: a
// service that starts over and over would fill its clients' trusted root.
const maxValidEphemeral = 200

// IsEphemeral reports whether a certifies ephemeral issuing CAs, by StartEphemeral,
// and signs no leaf itself.
func (a *Authority) IsEphemeral() bool { return a.history != nil }

// EphemeralOptions are what an Ephemeral works with.
type EphemeralOptions struct {
	// Lifetime is that of the leaves.
	Lifetime time.Duration
	// Trail is required: no record, no signature.
	Trail audit.Trail
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
	history *history

	signing  *Authority
	o        EphemeralOptions
	renewals *prometheus.CounterVec

	mu      sync.Mutex
	current *Authority // nil only while the first is made, and IsEphemeral until it could be; its own validity begins when it may sign leaves
	next    *Authority // nil until the next is made
	failed  failures   // to make the next
	listing error      // of the history, or of putting it in force
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
// Authorities has it, and Run renews it. Where the key can't be reached, and there are
// certificates from before to list, Run makes the first.
func StartEphemeral(ctx context.Context, a *Authority, o EphemeralOptions) (*Ephemeral, error) {
	if !a.IsEphemeral() {
		return nil, errors.New("ca: an authority that isn't ephemeral can't be started as one")
	}
	if o.Trail.Recorder == nil {
		return nil, errors.New("ca: no auditor: nothing is signed without a record")
	}
	e := &Ephemeral{history: a.history, signing: a, o: o}
	e.renewals = metric.Counter("mayfly_ca_ephemeral_renewals_total", "Attempts to make the next ephemeral issuing certificate, by outcome (ok, failed).", "outcome")
	e.renewals.WithLabelValues("ok")
	e.renewals.WithLabelValues("failed")
	if err := metric.Register(o.Metrics, e.renewals, metric.Read("mayfly_ca_ephemeral_issues_until_timestamp_seconds",
		"When the present ephemeral issuing certificate can issue no more, in Unix seconds.", nil, e.readUntil)); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if err := e.history.prepare(); err != nil {
		return nil, fmt.Errorf("ca: the history of issuing certificates: %w", err)
	}
	if err := e.checkValidCount(); err != nil {
		return nil, err
	}
	first, err := e.first(ctx)
	if call, ok := errors.AsType[*kms.CallError](err); ok && call.Temporary() && len(e.history.all()) > 0 {
		e.set(func() { e.current = a.lapsed(o.Trail.Now()) })
		e.missed(ctx, err)
		return e, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ca: the first ephemeral issuing certificate: %w", err)
	}
	e.set(func() { e.current = first })
	return e, nil
}

// first makes an issuing certificate where there is none.
func (e *Ephemeral) first(ctx context.Context) (*Authority, error) {
	wait := e.history.config.publishAhead()
	if e.history.config.AcceptUnlisted {
		wait = 0
	}
	first, err := e.make(ctx, wait)
	if err == nil && wait > 0 {
		e.o.Trail.Logger.WarnContext(ctx, "nothing is issued before the new issuing certificate has been listed for long enough: `accept_unlisted: true` would issue at once",
			slog.Time("issues_from", first.notBefore), slog.Duration("publish_ahead", wait))
	}
	return first, err
}

// checkValidCount refuses to start when a great many certificates are valid already.
func (e *Ephemeral) checkValidCount() error {
	valid := 0
	for _, c := range e.history.all() {
		if e.o.Trail.Now().Before(c.NotAfter) {
			valid++
		}
	}
	if valid >= maxValidEphemeral {
		return fmt.Errorf("ca: %d ephemeral issuing certificates are valid already, and each start lists another: find out why this service starts over and over, or use mode sealed", valid)
	}
	return nil
}

// until is when a signs its last leaf.
func (e *Ephemeral) until(a *Authority) time.Time { return a.notAfter.Add(time.Second - e.o.Lifetime) }

// readUntil is what the metric shows.
func (e *Ephemeral) readUntil() float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current == nil {
		return 0
	}
	return float64(e.until(e.current).Unix())
}

// renewAt is when the next certificate is made.
func (e *Ephemeral) renewAt() time.Time {
	return e.until(e.current).Add(-e.history.config.publishAhead() - e.history.config.slack())
}

// advance does what is due: reads what replicas have added, makes the next
// certificate, puts it in its predecessor's place. It reports whether the
// Authorities have changed.
func (e *Ephemeral) advance(ctx context.Context) (changed bool) {
	changed, err := e.history.refresh()
	if err != nil && (e.listing == nil || e.listing.Error() != err.Error()) {
		e.o.Trail.Logger.ErrorContext(ctx, "the history of issuing certificates can't be read; what was known of it stays listed", slog.Any("error", err))
	}
	e.set(func() { e.listing = err })
	now := e.o.Trail.Now()
	if e.next == nil && !now.Before(e.renewAt()) && !now.Before(e.failed.again) {
		changed = e.renew(ctx) || changed
	}
	return e.succeed(ctx, e.o.Trail.Now()) || changed
}

// renew makes the next certificate.
func (e *Ephemeral) renew(ctx context.Context) bool {
	var next *Authority
	var err error
	if e.current.IsEphemeral() {
		next, err = e.first(ctx)
	} else {
		next, err = e.make(ctx, e.history.config.publishAhead())
	}
	if err != nil {
		if ctx.Err() != nil {
			return false // the service ends
		}
		e.missed(ctx, err)
		return false
	}
	e.renewals.WithLabelValues("ok").Inc()
	e.set(func() { e.next, e.failed = next, failures{} })
	return true
}

// missed takes note of a certificate that couldn't be made.
func (e *Ephemeral) missed(ctx context.Context, err error) {
	e.renewals.WithLabelValues("failed").Inc()
	now, until := e.o.Trail.Now(), e.until(e.current)
	over, wait := now.After(until), min(firstRetry<<min(e.failed.count, 10), longestRetry)
	if over {
		wait = firstRetry
	}
	e.set(func() { e.failed = failures{count: e.failed.count + 1, err: err, again: now.Add(wait)} })
	log := e.o.Trail.Logger.With(slog.Time("issues_until", until), slog.Int("attempts", e.failed.count), slog.Duration("again_in", wait), slog.Any("error", err))
	if over {
		log.WarnContext(ctx, "nothing is issued until an issuing certificate can be made")
	} else {
		log.WarnContext(ctx, "the next issuing certificate can't be made; the present one goes on")
	}
}

// succeed puts the next certificate in force when it is its time, or when the
// present one is over and the operator accepts that.
func (e *Ephemeral) succeed(ctx context.Context, now time.Time) bool {
	switch {
	case e.next == nil:
		return false
	case e.current.IsEphemeral() || !now.Before(e.next.notBefore):
	case now.After(e.until(e.current)) && e.history.config.AcceptUnlisted:
		e.o.Trail.Logger.WarnContext(ctx, "the new issuing certificate issues before it has been listed for long enough: there is no other", slog.Time("due", e.next.notBefore))
		e.set(func() { e.next = e.next.starting(e.next.Certificate.NotBefore) })
	default:
		return false
	}
	e.set(func() { e.current, e.next = e.next, nil })
	return true
}

// set changes the state. Run's goroutine alone does, so that it may read without
// the lock; whoever asks from elsewhere never waits for a KMS.
func (e *Ephemeral) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// due is when advance has something to do by itself.
func (e *Ephemeral) due() time.Time {
	if e.next == nil {
		return later(e.failed.again, e.renewAt())
	}
	if over := e.until(e.current).Add(time.Second); e.history.config.AcceptUnlisted && over.Before(e.next.notBefore) {
		return over
	}
	return e.next.notBefore
}

// historyInterval is how often what replicas have added is looked for.
const historyInterval = time.Minute

// Run keeps the authority in certificates until ctx ends. put puts Authorities in
// force, documents first; it is called again until it succeeds.
func (e *Ephemeral) Run(ctx context.Context, put func(context.Context) error) error {
	pending := false
	for wait.OrWoken(ctx, min(historyInterval, e.due().Sub(e.o.Trail.Now())), e.o.Wake) == nil {
		if !e.advance(ctx) && !pending {
			continue
		}
		err := put(ctx)
		if pending = err != nil; pending && ctx.Err() == nil {
			e.o.Trail.Logger.ErrorContext(ctx, "a change of issuing certificates can't be put in force; it is tried again", slog.Any("error", err))
			e.postpone()
		}
	}
	return nil
}

// postpone keeps a certificate that couldn't be listed from issuing on time.
func (e *Ephemeral) postpone() {
	e.set(func() {
		e.listing = errors.New("the documents for clients couldn't be renewed")
		if e.next != nil {
			e.next = e.next.starting(e.o.Trail.Now().Add(historyInterval + e.history.config.publishAhead()))
		}
	})
}

// Authorities are base with e's issuing certificates in place of the signing CA's
// own: what is listed, and the one that signs where the signing CA is the active.
func (e *Ephemeral) Authorities(base *Set) *Set {
	e.mu.Lock()
	current := e.current
	e.mu.Unlock()
	next := &Set{Active: base.Active, Records: base.Records}
	if base.Active.history == e.history {
		next.Active = current
	}
	for _, b := range base.Trusted {
		if !bytes.Equal(b.Chain[0], e.history.parent[0].Raw) {
			next.Trusted = append(next.Trusted, b)
			continue
		}
		for _, c := range e.certificates() {
			t := trusted(b.Name, append([]*x509.Certificate{c}, e.history.parent...))
			t.Renewed = true
			next.Trusted = append(next.Trusted, t)
		}
	}
	next.sort()
	return next
}

// certificates are all that clients are to know, past ones included, in the order
// of their start.
func (e *Ephemeral) certificates() []*x509.Certificate {
	all := e.history.all()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range []*Authority{e.current, e.next} { // they count even if somebody has emptied the folder
		if g != nil && !g.IsEphemeral() && !slices.ContainsFunc(all, g.Certificate.Equal) {
			all = append(all, g.Certificate)
		}
	}
	return all
}

// Ready is nil unless the next issuing certificate is due and can't be made, or
// others' can't be read: the current one still issues, but not for ever.
func (e *Ephemeral) Ready(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.failed.err, e.listing)
}

// Detail says how things stand, in words that anybody may read.
func (e *Ephemeral) Detail() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current.IsEphemeral() {
		return []string{fmt.Sprintf("no issuing certificate could be made since the start; %d attempts failed, the next attempt is at %s", e.failed.count, chain.Stamp(e.failed.again))}
	}
	lines := []string{fmt.Sprintf("issues from %s until %s", chain.Stamp(e.current.notBefore), chain.Stamp(e.until(e.current)))}
	if e.next != nil {
		lines = append(lines, "the next is listed, and issues from "+chain.Stamp(e.next.notBefore))
	}
	if e.failed.count > 0 {
		lines = append(lines, fmt.Sprintf("the next was due at %s; %d attempts failed, the next attempt is at %s", chain.Stamp(e.renewAt()), e.failed.count, chain.Stamp(e.failed.again)))
	}
	return lines
}

// lapsed stands in the place of an issuing certificate of a, and covers no leaf.
func (a *Authority) lapsed(now time.Time) *Authority {
	none := *a
	none.notAfter, none.renewal, none.holders = now.Add(-time.Second), nil, new(atomic.Int64)
	none.signer = struct{ kms.Signer }{a.signer} // a goes on with it, so that it isn't closed
	none.holders.Store(1)
	return &none
}

// starting is a with another beginning.
func (a *Authority) starting(from time.Time) *Authority {
	later := *a
	later.notBefore = from
	return &later
}

// make makes an issuing certificate, checks it and keeps it in the history. It
// signs leaves once wait has passed.
func (e *Ephemeral) make(ctx context.Context, wait time.Duration) (*Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, renewalTime)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := e.o.Trail.Now().UTC().Truncate(time.Second)
	lifetime := min(e.history.config.lifetime(), e.signing.notAfter.Sub(now).Truncate(time.Second)) // less in the signing CA's last days
	draft, err := cacert.New(e.history.parent, cacert.Profile{
		CommonName: "Issuing " + now.Format("20060102T150405Z") + " " + rand.Text()[:8], Lifetime: lifetime,
	}, now)
	if err != nil {
		return nil, err
	}
	if err := draft.For(key.Public()); err != nil {
		return nil, err
	}
	made, err := e.certify(ctx, draft)
	if err != nil {
		return nil, err
	}
	a, err := New(made.Chain, kms.InMemory(key), Config{})
	if err != nil {
		return nil, err
	}
	if err := kms.Try(ctx, a.signer); err != nil {
		return nil, err
	}
	if err := e.history.add(made.Chain[0]); err != nil { // what isn't kept is never used
		return nil, fmt.Errorf("keeping it in the history: %w", err)
	}
	a.notBefore = now.Add(wait) // it isn't shared yet
	e.o.Trail.Logger.InfoContext(ctx, "a new issuing certificate", slog.String("subject", a.Subject), slog.String("sha256", chain.Fingerprint(a.Certificate.Raw)),
		slog.Time("not_after", a.notAfter), slog.Time("issues_from", a.notBefore))
	return a, nil
}

// certify has the signing CA sign, on record before and after.
func (e *Ephemeral) certify(ctx context.Context, d *cacert.Draft) (*cacert.Certificate, error) {
	intent := e.signing.Intent(audit.PurposeIssuing, d.Template.RawSubjectPublicKeyInfo)
	if err := e.o.Trail.Record(ctx, intent); err != nil {
		return nil, err
	}
	made, err := d.Sign(cacert.Key{Signer: cacert.Using(ctx, e.signing.signer), Ref: "the signing CA's key"})
	if err != nil {
		e.o.Trail.Failed(ctx, intent, err)
		return nil, err
	}
	return made, e.o.Trail.Record(ctx, issued(intent, made.Chain[0]))
}
