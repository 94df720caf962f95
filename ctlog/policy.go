package ctlog

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/tracing"
)

// How the policy waits where [Options] says nothing.
const (
	DefaultStagger = 2 * time.Second // a log that is silent for so long gets company
	DefaultTimeout = 8 * time.Second // all logs together have so long
)

// What an SCT's timestamp may be. A log that knows the entry already answers
// with its first timestamp, so the past reaches further than the future.
const (
	maxAge  = 10 * time.Minute
	maxLead = time.Minute
)

// retryAfter is what a client is told when no log answered.
const retryAfter = 5 * time.Second

// Options are what a [Policy] needs besides its logs.
type Options struct {
	SCTs      int                   // how many logs a certificate is in, each with its SCT; zero: 1
	Operators int                   // by how many operators those logs are run at least; zero: 1
	Stagger   time.Duration         // zero: DefaultStagger
	Timeout   time.Duration         // zero: DefaultTimeout
	Now       func() time.Time      // nil: time.Now
	Logger    *slog.Logger          // nil: nothing is logged
	Metrics   prometheus.Registerer // nil: nothing is registered
}

// Policy asks logs for an SCT in their order, and verifies what they answer. It
// holds no goroutine between submissions.
type Policy struct {
	inUse   atomic.Pointer[[]knownLog]
	quorum  quorum
	o       Options
	metrics *metrics
}

// knownLog is a log with its key parsed once.
type knownLog struct {
	Log
	description Description
	key         *ecdsa.PublicKey
}

// errBadSCT marks what a log must never answer. It is deliberately no
// *fault.Error: the client reads "internal error", the operator gets an alarm.
var errBadSCT = errors.New("ctlog: a log answered with an SCT that does not hold")

// NewPolicy makes a policy of one or more logs, the preferred first. A log
// without a P-256 key, or one whose id is not its key's hash, is an error.
func NewPolicy(logs []Log, o Options) (*Policy, error) {
	o.Stagger, o.Timeout = cmp.Or(max(o.Stagger, 0), DefaultStagger), cmp.Or(max(o.Timeout, 0), DefaultTimeout)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	p := &Policy{o: o, quorum: quorum{scts: max(o.SCTs, 1), operators: max(o.Operators, 1)}, metrics: newMetrics()}
	p.inUse.Store(new([]knownLog))
	use, err := p.Prepare(logs)
	if err != nil {
		return nil, err
	}
	use()
	if err := metric.Register(o.Metrics, p.metrics.submissions, p.metrics.seconds, p.metrics.bad, p.metrics.end); err != nil {
		return nil, fmt.Errorf("ctlog: %w", err)
	}
	return p, nil
}

// Prepare checks other logs, and returns what puts them in the place of those that
// the policy has. What is under way goes on with the old ones. The errors are those of
// [NewPolicy].
func (p *Policy) Prepare(logs []Log) (use func(), err error) {
	known := make([]knownLog, len(logs))
	for i, m := range logs {
		d := m.Description()
		key, err := ParseKey(d.SPKI)
		switch {
		case err != nil:
		case d.ID != sha256.Sum256(d.SPKI):
			err = errors.New("its id is not the SHA-256 of its key")
		case slices.ContainsFunc(known[:i], func(other knownLog) bool { return other.description.ID == d.ID }):
			err = errors.New("another log has the same key")
		}
		if err != nil {
			return nil, fmt.Errorf("ctlog: the log %s: %w", d.URL, err)
		}
		known[i] = knownLog{Log: m, description: d, key: key}
	}
	if !p.suffices(known) {
		return nil, fmt.Errorf("ctlog: %d SCTs of logs of %d operators are wanted, which the %d logs don't give", p.quorum.scts, p.quorum.operators, len(logs))
	}
	return func() {
		p.metrics.follow(p.logs(), known)
		p.inUse.Store(&known)
	}, nil
}

// logs are the logs in their order.
func (p *Policy) logs() []knownLog { return *p.inUse.Load() }

// ParseKey reads a log's key from a DER SubjectPublicKeyInfo. Logs here have
// ECDSA keys on P-256 (RFC 6962 §2.1.4), which every client takes.
func ParseKey(spki []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("parsing the log's key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the log's key is not ECDSA on P-256")
	}
	return key, nil
}

// Descriptions are the logs of the policy, in their order.
func (p *Policy) Descriptions() (all []Description) {
	for _, m := range p.logs() {
		all = append(all, m.description)
	}
	return all
}

// Ready is nil when as many logs as a certificate needs can take submissions, and a
// [fault.Warning] when one of them warns, or fails and others take its place.
func (p *Policy) Ready(ctx context.Context) error {
	now := p.o.Now()
	var ready []knownLog
	var warnings []string
	var failures []error
	for _, m := range p.logs() {
		url, err := m.description.URL, errors.New("it is outside its window")
		holds := m.description.Holds(now)
		if holds {
			err = m.Ready(ctx)
		}
		switch {
		case fault.Warns(err):
			warnings = append(warnings, fmt.Sprintf("%s: %v", url, err))
		case err != nil:
			failures = append(failures, fmt.Errorf("ctlog: the log %s: %w", url, err))
			if holds {
				warnings = append(warnings, url+": it takes no entries now, and others take its place")
			}
			continue
		}
		if ready = append(ready, m); p.suffices(ready) {
			return fault.Warn(warnings...)
		}
	}
	return errors.Join(failures...)
}

// Submit returns the verified SCTs that the policy wants, one unless it says
// otherwise, from the first logs in order that give them. The next log is asked
// when one fails, or is silent for the stagger time; all of them together have the
// policy's timeout. The SCTs are in the order of the logs.
//
// Errors: a *fault.Error with reason LogUnavailable when too few logs answered in
// time; an unclassified error when a log broke its word (a wrong SCT); the
// context's error when the caller went away. The chain may be logged even so.
func (p *Policy) Submit(ctx context.Context, chain Chain) ([]SCT, error) {
	if len(chain.Precertificate) == 0 || len(chain.TBS) == 0 || len(chain.Issuers) == 0 {
		return nil, errors.New("ctlog: nothing can be logged without a precertificate, its TBS and its issuers")
	}
	bounded, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel() // a slower log stops working for us as soon as we have an answer

	scts, err := p.submit(ctx, bounded, chain)
	if errors.Is(err, ErrOutsideWindow) {
		// A log's time ended between the choice and its answer: the next one has begun.
		scts, err = p.submit(ctx, bounded, chain)
	}
	return scts, err
}

// ErrOutsideWindow is in the error of a log that was asked in its time and would
// have answered after it.
var ErrOutsideWindow = errors.New("ctlog: the log's time has ended")

// submit asks the logs that hold now. ctx is the caller's, bounded the same with
// the policy's timeout.
func (p *Policy) submit(ctx, bounded context.Context, chain Chain) ([]SCT, error) {
	eligible := p.eligible()
	if !p.suffices(eligible) {
		return nil, p.tooFew()
	}
	if len(eligible) == 1 { // nobody to hand over to: no goroutine, no timer
		sct, err := p.ask(bounded, eligible[0], chain)
		if err != nil {
			return nil, p.refusal(ctx, []error{err})
		}
		return []SCT{sct}, nil
	}
	return p.race(ctx, bounded, eligible, chain)
}

// tooFew is the refusal at a time when too few logs are within their windows. It
// says when to try again where enough of them will be.
func (p *Policy) tooFew() error {
	logs, now, wait := p.logs(), p.o.Now(), fault.NoRetry
	windows := make([]string, len(logs))
	for i, m := range logs {
		d := m.description
		windows[i] = d.URL + d.window()
		left := d.Start.Sub(now)
		if left > 0 && (wait == fault.NoRetry || left < wait) && p.suffices(holding(logs, d.Start)) {
			wait = left
		}
	}
	return fault.New(fault.LogUnavailable, "too few transparency logs take certificates at this time, so nothing was issued; tell the operator of this CA").
		With("dependency", "ctlog").After(wait).
		Because(fmt.Errorf("ctlog: too few logs are within their windows at %s: %s", now.UTC().Format(time.RFC3339), strings.Join(windows, ", ")))
}

// ErrRefused marks the error of a log that understood a chain and refused it, or
// answered for another entry than the chain's: time won't mend it.
var ErrRefused = errors.New("ctlog: a log refuses the chain")

// Accepts submits the chain to every log of the policy that holds now, and verifies
// each SCT. It is nil when all take the chain. An error that wraps [ErrRefused]
// means that a log doesn't; any other, that one could not be asked.
func (p *Policy) Accepts(ctx context.Context, chain Chain) error {
	bounded, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	eligible := p.eligible()
	errs := make([]error, len(eligible))
	var wg sync.WaitGroup
	for i, m := range eligible {
		wg.Go(func() {
			sct, err := m.Submit(bounded, chain)
			switch {
			case err == nil:
				// Not as bad as after Submit: nothing was to be issued on this SCT.
				if _, err = m.check(sct, chain, p.o.Now()); err != nil {
					errs[i] = fmt.Errorf("%w: %s: its SCT does not hold: %w", ErrRefused, m.description.URL, err)
				}
			case ours(err):
				errs[i] = fmt.Errorf("%w: %s: %w", ErrRefused, m.description.URL, err)
			default:
				errs[i] = fmt.Errorf("ctlog: the log %s: %w", m.description.URL, err)
			}
		})
	}
	wg.Wait()
	if len(eligible) == 0 {
		return errors.New("ctlog: every log is outside its window")
	}
	return errors.Join(errs...)
}

func (p *Policy) eligible() []knownLog { return holding(p.logs(), p.o.Now()) }

// holding are the logs that may be used at the time t.
func holding(logs []knownLog, t time.Time) []knownLog {
	ends := func(m knownLog) bool { return !m.description.Holds(t) }
	if !slices.ContainsFunc(logs, ends) {
		return logs
	}
	return slices.DeleteFunc(slices.Clone(logs), ends)
}

// CoveredUntil is the moment from which the logs that are known now don't suffice
// any more; zero when there is none.
func (p *Policy) CoveredUntil() time.Time {
	logs, t := p.logs(), p.o.Now()
	for p.suffices(holding(logs, t)) {
		var next time.Time
		for _, m := range logs {
			if end := m.description.End; end.After(t) && (next.IsZero() || end.Before(next)) {
				next = end
			}
		}
		if next.IsZero() {
			return next
		}
		t = next
	}
	return t
}

// ask submits to one log and verifies what it answers.
func (p *Policy) ask(ctx context.Context, m knownLog, chain Chain) (SCT, error) {
	url, begin := m.description.URL, time.Now() // a duration, not the time of day: the injected clock has no say
	sct, outcome, err := p.verified(ctx, m, chain)
	p.metrics.submissions.WithLabelValues(url, string(outcome)).Inc()
	p.metrics.seconds.WithLabelValues(url, string(outcome)).Observe(time.Since(begin).Seconds())
	failed := string(outcome)
	if err == nil {
		failed = ""
	}
	tracing.Step(ctx, url, begin, time.Now(), failed)
	return sct, err
}

// verified is ask, and what became of it.
func (p *Policy) verified(ctx context.Context, m knownLog, chain Chain) (SCT, outcome, error) {
	url := m.description.URL
	sct, err := m.Submit(ctx, chain)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			p.o.Logger.WarnContext(ctx, "log gave no SCT", slog.String("log", url), slog.Any("error", err))
		}
		return SCT{}, outcomeOf(err), fmt.Errorf("ctlog: the log %s: %w", url, err)
	}
	now := p.o.Now()
	flaw, err := m.check(sct, chain, now)
	switch {
	case err == nil:
		return sct, outcomeLogged, nil
	case flaw == flawTime && !m.description.Holds(now): // it did when it was asked
		return SCT{}, outcomeDown, LogEnded(url)
	}
	p.metrics.bad.WithLabelValues(url, string(flaw)).Inc()
	p.o.Logger.ErrorContext(ctx, "log answered with a bad SCT; nothing was issued on it",
		slog.String("log", url), slog.String("flaw", string(flaw)), slog.Any("error", err))
	return SCT{}, outcomeBad, fmt.Errorf("%w: the log %s: %w", errBadSCT, url, err)
}

// LogEnded is the error of a log whose time ended while it was asked.
func LogEnded(url string) error {
	return fault.New(fault.LogUnavailable, "a transparency log's time has just ended; try again").
		With("dependency", "ctlog").Because(fmt.Errorf("%s: %w", url, ErrOutsideWindow))
}

// flaw is why an SCT is bad: a metric label from a closed list.
type flaw string

const (
	flawLogID      flaw = "log_id"
	flawTime       flaw = "timestamp"
	flawExtensions flaw = "extensions"
	flawSignature  flaw = "signature"
)

// check verifies all that an SCT claims, the cheap claims first. The log id is
// not signed, so its comparison is as necessary as the signature's.
func (m knownLog) check(s SCT, chain Chain, now time.Time) (flaw, error) {
	if s.LogID != m.description.ID {
		return flawLogID, errors.New("the SCT names another log")
	}
	earliest, latest := now.Add(-maxAge).UnixMilli(), now.Add(maxLead).UnixMilli()
	if s.Timestamp < uint64(max(earliest, 0)) || s.Timestamp > uint64(max(latest, 0)) {
		return flawTime, fmt.Errorf("the SCT's timestamp %d is not within %s before and %s after now, %d", s.Timestamp, maxAge, maxLead, now.UnixMilli())
	}
	if at := time.UnixMilli(int64(s.Timestamp)); !m.description.Holds(at) { // bounded above
		// Clients judge an SCT by its own time, not by when it was asked for.
		return flawTime, fmt.Errorf("the SCT's timestamp %d is outside the log's window", s.Timestamp)
	}
	if err := s.CheckExtensions(); err != nil {
		return flawExtensions, err
	}
	if err := s.Verify(m.key, chain); err != nil {
		return flawSignature, err
	}
	return "", nil
}

// refusal sums up why there is no SCT. A broken promise outweighs an outage:
// trying again won't mend it, and somebody has to look.
func (p *Policy) refusal(ctx context.Context, failures []error) error {
	cause := errors.Join(failures...)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("ctlog: the caller went away: %w", ctx.Err())
	case slices.ContainsFunc(failures, ours):
		// Flattened, so that no classified error beside it decides the answer.
		return fmt.Errorf("%w: no SCT that holds: %s", ErrRefused, cause) //nolint:errorlint // on purpose: see above
	}
	return fault.New(fault.LogUnavailable, "the transparency log gave no answer; nothing was issued; try again").
		With("dependency", "ctlog").After(after(cause)).Because(cause)
}

// ours reports whether an attempt failed for a reason that time won't mend: a
// bad SCT, or a log that understood the submission and refused it.
func ours(err error) bool {
	o := outcomeOf(err)
	return o != outcomeDown && o != outcomeCanceled
}

// after is the wait that a log asked for, or the usual one.
func after(cause error) time.Duration {
	if f, ok := errors.AsType[*fault.Error](cause); ok && f.RetryAfter > 0 {
		return f.RetryAfter
	}
	return retryAfter
}

// outcome is how a submission ended: a metric label from a closed list.
type outcome string

const (
	outcomeLogged   outcome = "logged"
	outcomeDown     outcome = "unavailable" // the log is down, slow or overloaded
	outcomeCanceled outcome = "canceled"    // another log was faster, or the caller went away
	outcomeFailed   outcome = "failed"      // anything else
	outcomeBad      outcome = "bad_sct"     // the log broke its word
)

func outcomeOf(err error) outcome {
	f, ok := errors.AsType[*fault.Error](err)
	switch {
	case errors.Is(err, context.Canceled):
		return outcomeCanceled
	case ok && f.Kind() == fault.Unavailable, errors.Is(err, context.DeadlineExceeded):
		return outcomeDown
	default:
		return outcomeFailed
	}
}

type metrics struct {
	submissions *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	bad         *prometheus.CounterVec
	end         *prometheus.GaugeVec
}

func newMetrics() *metrics {
	return &metrics{
		submissions: metric.Counter("mayfly_ctlog_submissions_total", "Submissions to a transparency log by outcome.", "log", "outcome"),
		seconds: metric.Histogram("mayfly_ctlog_submission_seconds", "Time from a submission to its verified SCT or its failure.",
			[]float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "log", "outcome"),
		end: metric.Gauge("mayfly_ctlog_end_timestamp_seconds",
			"When a transparency log stops being used, in seconds since 1970; logs without an end are left out.", "log"),
		bad: metric.Counter("mayfly_ctlog_bad_sct_total",
			"SCTs that did not hold, by what was wrong. Any increase needs a person: the log breaks its word.", "log", "flaw"),
	}
}

// follow gives the logs that are in use now their series, so that an alarm on a bad SCT
// has a zero to rise from. Those that are no longer keep what was counted, but have no
// end to come.
func (m *metrics) follow(before, now []knownLog) {
	for _, one := range before {
		m.end.DeleteLabelValues(one.description.URL)
	}
	for _, one := range now {
		for _, f := range []flaw{flawLogID, flawTime, flawExtensions, flawSignature} {
			m.bad.WithLabelValues(one.description.URL, string(f))
		}
		if end := one.description.End; !end.IsZero() {
			m.end.WithLabelValues(one.description.URL).Set(float64(end.Unix()))
		}
	}
}
