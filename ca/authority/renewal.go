package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// probeName is whom a probe's precertificate names. The top-level domain can't
// exist (RFC 2606 §2), so nobody has this identity or can be mistaken for it.
const probeName = "https://nobody.invalid/mayfly-probe"

// How a presigner is kept up to date.
const (
	presignTimeout = 30 * time.Second // of one attempt: a signature and an answer of every log
	leastPause     = 30 * time.Second // after a failure; it doubles
	mostPause      = 10 * time.Minute
	suspectPause   = time.Minute // between two looks at a presigner whose precertificates a log refuses
	longestSleep   = time.Hour   // the machine's clock may jump meanwhile
	shortestSleep  = time.Second // what is to be done at once wakes Run
)

// never is when what lasts to the authority's end is replaced.
var never = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// presigning is how an authority comes by its presigner: one is made, the logs are
// shown what it signs, and it is replaced before its end. Whatever fails in this,
// the authority's own key can sign precertificates.
type presigning struct {
	required bool // precertificate_signer: on

	current atomic.Pointer[presigner] // in force; nil: none is
	suspect atomic.Bool               // a log refused what current signed
	refused atomic.Bool               // a log refused what latest signed

	mu     sync.Mutex // one attempt at a time
	latest *presigner // in force once every log takes what it signs
	doubts time.Time  // when the logs were asked last for being suspect
	next   time.Time  // when there is something to do; zero: now
	pause  time.Duration
	told   string // what the operator was told last
}

// presigner is what signs a precertificate of that validity; nil for the
// authority's own key.
func (a *Authority) presigner(notBefore, notAfter time.Time) *presigner {
	if a.presigning == nil {
		return nil
	}
	if p := a.presigning.current.Load(); p != nil && p.covers(notBefore, notAfter) {
		return p
	}
	return nil
}

// signatures is what a certificate costs of the authority's key.
func (i *Issuer) signatures(p *presigner) int {
	if p == nil && i.log != nil {
		return 2
	}
	return 1
}

// doubt has the logs asked again soon: one of them refused what the presigner signed.
func (s *presigning) doubt(i *Issuer) {
	s.suspect.Store(true)
	i.wake()
}

// AskLogs has Run ask soon whether the logs take what the precertificate signing
// certificate signs: they are others than before.
func (i *Issuer) AskLogs() {
	if a := i.current.Load().Active; a.presigning != nil {
		a.presigning.doubt(i)
	}
}

// wake has Run look again.
func (i *Issuer) wake() {
	select {
	case i.woken <- struct{}{}:
	default: // it was told already
	}
}

// Settle finds out, before a's first request, whether the logs take precertificates
// of a precertificate signing certificate where the authority's configuration asks
// for one. a may be active or about to be. What can't be found out now Run asks
// again. The error, a *setting.FaultError, says that the configuration insists on
// what a log refuses; or ctx ended.
func (i *Issuer) Settle(ctx context.Context, a *Authority) error {
	if i.log == nil || a.presigning == nil {
		return nil
	}
	err := i.presign(ctx, a)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if a.presigning.required && errors.Is(err, ctlog.ErrRefused) {
		var f setting.Faults
		f.Add(setting.Join(a.path, "precertificate_signer"), "is on, but a log refuses what such a certificate signs: have the log's operator allow it (RFC 6962 §3.1), or set auto: %v", err)
		return f.Err()
	}
	return nil
}

// Run keeps the authority's precertificate signing certificate up to date until
// ctx ends. Issuance never waits for it.
func (i *Issuer) Run(ctx context.Context) error {
	for {
		sleep := longestSleep
		if a := i.current.Load().Active; i.log != nil && a.presigning != nil {
			_ = i.presign(ctx, a) // it has told the operator
			sleep = min(max(a.presigning.wait(i.now()), shortestSleep), longestSleep)
		}
		if wait.OrWoken(ctx, sleep, i.woken) != nil {
			return nil
		}
	}
}

// wait is how long there is nothing to do.
func (s *presigning) wait(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.due().Sub(now))
}

// due is when the logs are asked next.
func (s *presigning) due() time.Time {
	if again := s.doubts.Add(suspectPause); s.suspect.Load() && again.Before(s.next) {
		return again
	}
	return s.next
}

// presign makes a's presigner and asks the logs where it is time to. The error is
// why there is no new one; ErrRefused in it means that there can't be.
func (i *Issuer) presign(ctx context.Context, a *Authority) error {
	if !a.lease.take() { // another took its place meanwhile
		return nil
	}
	defer a.release()
	s := a.presigning
	s.mu.Lock()
	defer s.mu.Unlock()
	now := i.now()
	if now.Before(s.due()) {
		return nil
	}
	if a.notAfter.Sub(now) < 2*MaxLifetime { // another would hardly begin before its end
		s.next = never
		if s.suspect.Swap(false) { // and there is nobody left to ask about this one
			s.current.Store(nil)
		}
		return nil
	}
	if s.suspect.Load() {
		s.doubts = now
	}
	bounded, cancel := context.WithTimeout(ctx, presignTimeout)
	defer cancel()
	err := i.renewPresigner(bounded, a)
	switch {
	case ctx.Err() != nil: // the service ends
		return err
	case err == nil:
		s.current.Store(s.latest)
		s.suspect.Store(false)
		s.refused.Store(false)
		s.next, s.pause = s.latest.renew, 0
	case errors.Is(err, ctlog.ErrRefused):
		s.current.Store(nil)
		s.suspect.Store(false)
		s.refused.Store(true)
		s.next, s.pause = now.Add(presignerRenewal), 0
	default:
		s.pause = min(max(2*s.pause, leastPause), mostPause)
		s.next = now.Add(s.pause)
	}
	i.tell(ctx, a, err)
	return err
}

// tell writes a line when it changes what signs precertificates, and why.
func (i *Issuer) tell(ctx context.Context, a *Authority, err error) {
	s := a.presigning
	words, level := i.signingForm(a), slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
	}
	if kept := err != nil && s.current.Load() != nil; kept {
		words = "the precertificate signing certificate in force can't be replaced yet"
	}
	if words == s.told {
		return
	}
	s.told = words
	attrs := []slog.Attr{slog.String("authority", a.words), slog.String("signatures_per_certificate", words)}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	i.logger.LogAttrs(ctx, level, "how precertificates are signed", attrs...)
}

// SigningForm says what a certificate costs of the active authority's key, and
// why, in words that anybody may read.
func (i *Issuer) SigningForm() string { return i.signingForm(i.current.Load().Active) }

func (i *Issuer) signingForm(a *Authority) string {
	if i.log == nil {
		return "1: there are no precertificates without a log"
	}
	if p := a.presigner(i.validity(i.lifetime)); p != nil {
		return "1: precertificates have a signing certificate, valid to " + p.certificate.NotAfter.UTC().Format(time.RFC3339)
	}
	switch {
	case a.presigning == nil:
		return "2: the authority's key signs precertificates as well"
	case a.presigning.refused.Load():
		return "2: a log refuses what a precertificate signing certificate signs"
	default:
		return "2: the logs or the key couldn't be asked yet for a precertificate signing certificate"
	}
}

// renewPresigner leaves in latest a presigner whose precertificate every log has
// just taken. One that the logs couldn't be asked about is kept for the next time.
func (i *Issuer) renewPresigner(ctx context.Context, a *Authority) error {
	s, now := a.presigning, i.now()
	if old := s.latest; old == nil || !now.Before(old.renew) {
		p, err := i.makePresigner(ctx, a, now)
		if err != nil {
			return err
		}
		s.latest = p
	}
	return i.probe(ctx, a, s.latest)
}

// makePresigner makes a key and has the authority certify it, on record before and after.
func (i *Issuer) makePresigner(ctx context.Context, a *Authority, now time.Time) (*presigner, error) {
	key, err := a.presignerKey()
	if err != nil {
		return nil, fmt.Errorf("ca: making a precertificate signing key: %w", err)
	}
	serial, err := newSerial(i.random)
	if err != nil {
		return nil, err
	}
	template := a.presignerTemplate(serial, now)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing key: %w", err)
	}
	intent := own(audit.PurposePresigner, a, spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = hex.EncodeToString(serial.Bytes()), template.NotBefore, template.NotAfter
	if err := i.trail.record(ctx, intent); err != nil {
		return nil, err
	}
	p, err := a.newPresigner(ctx, template, key, now)
	if err != nil {
		i.trail.failed(ctx, intent, err)
		return nil, err
	}
	done, fingerprint := intent, sha256.Sum256(p.certificate.Raw)
	done.Type, done.Fingerprint = audit.Issued, hex.EncodeToString(fingerprint[:])
	return p, i.trail.record(ctx, done)
}

// probe submits a precertificate of nobody, signed by p, to every log. It says
// what a client's would, but for the identity; no certificate follows it.
func (i *Issuer) probe(ctx context.Context, a *Authority, p *presigner) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // forgotten at once
	if err != nil {
		return fmt.Errorf("ca: making a key for a probe: %w", err)
	}
	l := &leaf{lifetime: i.lifetime, san: identity.SAN{Kind: identity.URI, Value: probeName}}
	l.notBefore, l.notAfter = i.validity(i.lifetime)
	if l.spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return fmt.Errorf("ca: a probe's key: %w", err)
	}
	if l.keyID, err = keyID(l.spki); err != nil {
		return err
	}
	if l.serial, err = newSerial(i.random); err != nil {
		return err
	}
	poisoned, err := a.tbs(l, poisonDER)
	if err != nil {
		return err
	}
	plain, err := replaceExtension(poisoned, oidPoison, nil)
	if err != nil {
		return err
	}
	intent := own(audit.PurposeProbe, a, l.spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = hex.EncodeToString(l.serial.Bytes()), l.notBefore, l.notAfter
	intent.SAN, intent.SANType = l.san.Value, l.san.Kind.String()
	if err := i.trail.record(ctx, intent); err != nil {
		return err
	}
	chain, err := a.precertify(ctx, p, poisoned, plain)
	if err == nil {
		err = i.log.Accepts(ctx, chain)
	}
	if err != nil {
		i.trail.failed(ctx, intent, err)
		return err
	}
	done := intent
	done.Type = audit.Probed
	return i.trail.record(ctx, done)
}

// own is the record of something of the CA's own.
func own(purpose string, a *Authority, spki []byte) audit.Event {
	fingerprint := sha256.Sum256(spki)
	return audit.Event{
		Type: audit.Intent, Purpose: purpose, Authority: a.words, KeyFingerprint: hex.EncodeToString(fingerprint[:]),
	}
}

// registerForm registers what shows how precertificates are signed.
func (i *Issuer) registerForm(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	inForce := func() *presigner { return i.current.Load().Active.presigner(i.validity(i.lifetime)) }
	return errors.Join(
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_ca_signatures_per_certificate",
			Help: "Signatures of the active authority's key that a certificate costs: 1 with a precertificate signing certificate or without a log, else 2.",
		}, func() float64 { return float64(i.signatures(inForce())) })),
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mayfly_ca_precertificate_signer_expiry_timestamp_seconds",
			Help: "When the precertificate signing certificate in force ends, in Unix seconds; 0 without one.",
		}, func() float64 {
			p := inForce()
			if p == nil {
				return 0
			}
			return float64(p.certificate.NotAfter.Unix())
		})),
	)
}
