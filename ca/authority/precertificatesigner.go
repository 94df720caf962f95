package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// A precertificate signing certificate's life. Its key is in memory, so each start
// makes another; days bound what a stolen one is good for, and leave two of them
// to a KMS or a log that is down when it is to be renewed.
const (
	signerLifetime = 72 * time.Hour
	signerRenewal  = 24 * time.Hour
	signerBackdate = 5 * time.Minute // a log's clock may be behind ours
)

// PrecertificateSigner is a precertificate signing certificate (RFC 6962 §3.1) and
// its key, which is in memory: what it signs costs no signature of the authority's
// key. Callers must not write to it.
type PrecertificateSigner struct {
	Certificate *x509.Certificate
	Chain       [][]byte // DER: its certificate, the issuing one, …, the root
	KeyID       []byte   // the authority key identifier that names its key, the whole extension in DER

	key   crypto.Signer
	hash  crypto.Hash
	renew time.Time // when another is to take its place
}

// SignTBS signs a precertificate's TBSCertificate and gives the signature.
func (s *PrecertificateSigner) SignTBS(tbs []byte) ([]byte, error) {
	sig, err := s.key.Sign(rand.Reader, pubkey.Digest(s.hash, tbs), s.hash)
	if err != nil {
		return nil, fmt.Errorf("ca: signing the precertificate: %w", err)
	}
	return sig, nil
}

// newSigner makes a key and has a certify it with one signature, on record before
// and after. The error is classified where a's key can't be used.
func (f *InForce) newSigner(ctx context.Context, a *Authority, now time.Time) (*PrecertificateSigner, error) {
	// A TBSCertificate names the algorithm, which must fit the precertificate's signature as well as
	// the final one's (RFC 6962 §3.2). ECDSA's names no curve, so P-256 does for all.
	algorithm := kms.ECDSAP256
	if _, ok := a.Public().(*rsa.PublicKey); ok {
		algorithm = kms.RSA2048
	}
	key, err := algorithm.Generate()
	if err != nil {
		return nil, fmt.Errorf("ca: making a precertificate signing key: %w", err)
	}
	serial, err := cacert.NewSerial(rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing key: %w", err)
	}
	begin := now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: a.Certificate.Subject.Organization, CommonName: "Precertificate signing"},
		NotBefore:    later(begin.Add(-signerBackdate), a.notBefore), NotAfter: earlier(begin.Add(signerLifetime), a.notAfter),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		KeyUsage:           x509.KeyUsageCertSign,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{ctlog.OIDPrecertificateSigning}, // that one alone: it signs nothing that anybody else accepts
	}
	intent := a.Intent(audit.PurposePrecertificateSigner, spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = serial.Text(16), template.NotBefore, template.NotAfter
	if err := f.o.Trail.Record(ctx, intent); err != nil {
		return nil, err
	}
	s, err := a.certifySigner(ctx, template, key, now)
	if err != nil {
		f.o.Trail.Failed(ctx, intent, err)
		return nil, err
	}
	return s, f.o.Trail.Record(ctx, issued(intent, s.Certificate))
}

// certifySigner signs the certificate of a precertificate signer, and reads it back.
func (a *Authority) certifySigner(ctx context.Context, template *x509.Certificate, key crypto.Signer, now time.Time) (*PrecertificateSigner, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, key.Public(), cacert.Using(ctx, a))
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing certificate: %w", err)
	}
	s := &PrecertificateSigner{key: key, hash: a.hash, renew: never, Chain: append([][]byte{der}, a.Chain...)}
	if s.Certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing certificate: %w", err)
	}
	if !ctlog.SignsPrecertificates(s.Certificate) || !bytes.Equal(s.Certificate.RawIssuer, a.Certificate.RawSubject) {
		return nil, errors.New("ca: the precertificate signing certificate doesn't say what it should")
	}
	if s.Certificate.NotAfter.Before(a.notAfter) {
		s.renew = now.Add(signerRenewal)
	}
	s.KeyID = authorityKeyID(s.Certificate.SubjectKeyId)
	return s, nil
}

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
	if s := a.renewal.current.Load(); s != nil && !notBefore.Before(s.Certificate.NotBefore) && !notAfter.After(s.Certificate.NotAfter) {
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
	if !a.Hold() { // another took its place meanwhile
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
