package authority

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// How a precertificate signer is kept up to date.
const (
	renewalTimeout = 30 * time.Second // of one attempt: a signature, and every log's word
	minPause       = 30 * time.Second // after a failure; it doubles
	maxPause       = 10 * time.Minute
	recheckPause   = time.Minute // between two questions about a signer whose precertificates a log refuses
	maxSleep       = time.Hour   // the machine's clock may jump meanwhile
	minSleep       = time.Second // what is to be done at once wakes Run
)

// never is when what lasts to the authority's end is replaced.
var never = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// renewal is how an authority comes by its precertificate signer: one is made, the
// logs are shown what it signs, and it is replaced before its end. Whatever fails
// in this, the authority's own key can sign precertificates.
type renewal struct {
	required bool // precertificate_signer: on

	current     atomic.Pointer[PrecertificateSigner] // in force; nil: none is
	rejected    atomic.Bool                          // a log refused what current signed
	unsupported atomic.Bool                          // a log refused what latest signed

	mu         sync.Mutex            // one attempt at a time
	latest     *PrecertificateSigner // in force once every log takes what it signs
	rechecked  time.Time             // when the logs were asked last because one rejected
	next       time.Time             // when there is something to do; zero: now
	pause      time.Duration
	lastLogged string // of signingForm's words
}

// PrecertificateSigner is what signs a precertificate of that validity; nil for the
// authority's own key.
func (a *Authority) PrecertificateSigner(notBefore, notAfter time.Time) *PrecertificateSigner {
	if a.renewal == nil {
		return nil
	}
	if s := a.renewal.current.Load(); s != nil && s.covers(notBefore, notAfter) {
		return s
	}
	return nil
}

// Signatures is what a certificate costs of the authority's key when s, or the key
// itself where it is nil, signs its precertificate.
func (f *InForce) Signatures(s *PrecertificateSigner) int {
	if s == nil && f.o.Probe != nil {
		return 2
	}
	return 1
}

// RecheckSoon has Run ask the logs soon whether they take what a's precertificate
// signer signs: one of them refused it, or they are others than before.
func (f *InForce) RecheckSoon(a *Authority) {
	if a.renewal != nil {
		a.renewal.rejected.Store(true)
		f.wake()
	}
}

// wake has Run look again.
func (f *InForce) wake() {
	select {
	case f.woken <- struct{}{}:
	default: // it is woken already
	}
}

// CheckPrecertificateSigner finds out, before a's first request, whether the logs
// take precertificates of a precertificate signer where a's configuration asks for
// one. a may be active or about to be. What can't be found out now Run asks again.
// The error, a *setting.FaultError, says that the configuration insists on what a
// log refuses; or ctx ended.
func (f *InForce) CheckPrecertificateSigner(ctx context.Context, a *Authority) error {
	if f.o.Probe == nil || a.renewal == nil {
		return nil
	}
	err := f.renewSigner(ctx, a)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if a.renewal.required && errors.Is(err, ctlog.ErrRefused) {
		var faults setting.Faults
		faults.Add(setting.Join(a.path, "precertificate_signer"), "is on, but a log refuses what such a certificate signs: have the log's operator allow it (RFC 6962 §3.1), or set auto: %v", err)
		return faults.Err()
	}
	return nil
}

// Run keeps the active authority's precertificate signer up to date until ctx ends.
// Issuance never waits for it.
func (f *InForce) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		sleep := maxSleep
		if a := f.current.Load().Active; f.o.Probe != nil && a.renewal != nil {
			_ = f.renewSigner(ctx, a) // it has logged the failure
			sleep = min(max(a.renewal.wait(f.o.Trail.Now()), minSleep), maxSleep)
		}
		_ = wait.OrWoken(ctx, sleep, f.woken) // the loop asks ctx
	}
	return nil
}

// wait is how long there is nothing to do.
func (r *renewal) wait(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, r.due().Sub(now))
}

// due is when the logs are asked next.
func (r *renewal) due() time.Time {
	if again := r.rechecked.Add(recheckPause); r.rejected.Load() && again.Before(r.next) {
		return again
	}
	return r.next
}

// renewSigner makes a's precertificate signer and asks the logs where it is time
// to. The error is why there is no new one; ErrRefused in it means that there can't
// be.
func (f *InForce) renewSigner(ctx context.Context, a *Authority) error {
	if !a.lease.take() { // another took its place meanwhile
		return nil
	}
	defer a.Release()
	r := a.renewal
	r.mu.Lock()
	defer r.mu.Unlock()
	now := f.o.Trail.Now()
	if now.Before(r.due()) {
		return nil
	}
	if a.notAfter.Sub(now) < 2*MaxLeafLifetime { // another would hardly begin before its end
		r.next = never
		if r.rejected.Swap(false) { // and no log takes this one
			r.current.Store(nil)
		}
		return nil
	}
	if r.rejected.Load() {
		r.rechecked = now
	}
	bounded, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	err := f.tryLatest(bounded, a, now)
	switch {
	case ctx.Err() != nil: // the service ends
		return err
	case err == nil:
		r.current.Store(r.latest)
		r.rejected.Store(false)
		r.unsupported.Store(false)
		r.next, r.pause = r.latest.renew, 0
	case errors.Is(err, ctlog.ErrRefused):
		r.current.Store(nil)
		r.rejected.Store(false)
		r.unsupported.Store(true)
		r.next, r.pause = now.Add(signerRenewal), 0
	default:
		r.pause = min(max(2*r.pause, minPause), maxPause)
		r.next = now.Add(r.pause)
	}
	f.logForm(ctx, a, err)
	return err
}

// tryLatest leaves in latest a signer whose precertificate every log has just
// taken. One that the logs couldn't be asked about is kept for the next time.
func (f *InForce) tryLatest(ctx context.Context, a *Authority, now time.Time) error {
	if r := a.renewal; r.latest == nil || !now.Before(r.latest.renew) {
		s, err := f.newSigner(ctx, a, now)
		if err != nil {
			return err
		}
		r.latest = s
	}
	return f.o.Probe(ctx, a, a.renewal.latest)
}

// logForm writes a line when what signs precertificates changes, and why.
func (f *InForce) logForm(ctx context.Context, a *Authority, err error) {
	r := a.renewal
	form, level := f.signingForm(a), slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
		if r.current.Load() != nil {
			form = "the precertificate signing certificate in force can't be replaced yet"
		}
	}
	if form == r.lastLogged {
		return
	}
	r.lastLogged = form
	attrs := []slog.Attr{slog.String("authority", a.Subject), slog.String("signatures_per_certificate", form)}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	f.o.Trail.Logger.LogAttrs(ctx, level, "how precertificates are signed", attrs...)
}

// SigningForm says what a certificate costs of the active authority's key, and
// why, in words that anybody may read.
func (f *InForce) SigningForm() string { return f.signingForm(f.current.Load().Active) }

func (f *InForce) signingForm(a *Authority) string {
	if f.o.Probe == nil {
		return "1: there are no precertificates without a log"
	}
	if s := a.PrecertificateSigner(f.validity(a)); s != nil {
		return "1: precertificates have a signing certificate, valid to " + chain.Stamp(s.Certificate.NotAfter)
	}
	switch {
	case a.renewal == nil:
		return "2: the authority's key signs precertificates as well"
	case a.renewal.unsupported.Load():
		return "2: a log refuses what a precertificate signing certificate signs"
	default:
		return "2: the logs or the key couldn't be asked yet for a precertificate signing certificate"
	}
}
