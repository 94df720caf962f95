package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	"github.com/mayfly-ca/mayfly/internal/tbs"
	"github.com/mayfly-ca/mayfly/internal/tracing"
)

// Issue issues a certificate for who and key, both of them verified. It is in a
// log, its signature and its likeness to the logged precertificate are checked,
// and its outcome is recorded, when Issue returns it.
//
// Errors are *fault.Error or unclassified ones, which are ours: ClaimInvalid for
// a name that no certificate can carry; SignerUnavailable for the key or an
// authority that ends too soon; SigningQuota; AuditUnavailable; what the log says (usually
// LogUnavailable); DeadlineReached and ClientGone where ctx ended. Nothing is
// signed before the intent is on record, and no final certificate before the
// log has answered. A retry draws a new serial number.
func (i *Issuer) Issue(ctx context.Context, who identity.Principal, key proof.Key) (_ *Certificate, err error) {
	if who.IsZero() || key.IsZero() {
		return nil, errors.New("ca: an issuance without a verified principal and a proven key")
	}
	watch := i.stopwatch(ctx)
	defer func() { watch.stop(err) }()
	a, err := i.Acquire() // one authority for the whole of this request
	if err != nil {
		return nil, err
	}
	defer a.Release()

	l, poisoned, plain, err := i.prepare(a, who, key)
	if err != nil {
		i.recordUnbegun(ctx, a, who, key, err)
		return nil, err
	}
	watch.lap(stageProfile)

	p := a.PrecertificateSigner(l.notBefore, l.notAfter)
	if err := a.Admit(ctx, i.Signatures(p)); err != nil {
		i.recordUnbegun(ctx, a, who, key, err)
		return nil, err
	}
	watch.lap(stageAdmission)

	intent := event(ctx, a, l, who, key)
	if err := i.trail.Record(ctx, intent); err != nil {
		return nil, err
	}
	watch.lap(stageAudit)

	cert, err := i.sign(ctx, a, p, l, poisoned, plain, &watch)
	if err != nil {
		i.trail.Failed(ctx, intent, err)
		return nil, err
	}

	if err := i.trail.Record(ctx, issued(intent, cert)); err != nil { // what isn't on record doesn't leave
		i.trail.Failed(ctx, intent, err)
		return nil, err
	}
	watch.lap(stageRecord)
	return cert, nil
}

// prepare builds the profile and its TBSCertificate, with the poison and without, and lints it.
func (i *Issuer) prepare(a *authority.Authority, who identity.Principal, key proof.Key) (l *leaf, poisoned, plain []byte, err error) {
	if l, err = i.profile(a, who, key); err != nil {
		return nil, nil, nil, err
	}
	if poisoned, plain, err = l.encode(a); err != nil {
		return nil, nil, nil, err
	}
	if err := lint(poisoned, l, a, l.lifetime); err != nil {
		return nil, nil, nil, err
	}
	return l, poisoned, plain, permitted(a, l, plain)
}

// permitted refuses a name that the chain's name constraints exclude: verifiers
// would refuse the certificate.
func permitted(a *authority.Authority, l *leaf, plain []byte) error {
	if !a.BoundsNames() {
		return nil
	}
	unsigned, err := x509.ParseCertificate(assemble(plain, a.SignatureAlgorithm, nil))
	if err != nil {
		return fmt.Errorf("ca: the certificate to be signed doesn't parse: %w", err)
	}
	if err := a.Permits(unsigned); err != nil {
		kind := l.san.Kind.String()
		return fault.New(fault.ClaimInvalid, "the certificate authority mustn't certify the identity's %s: its own certificates have name constraints that exclude it; ask its operator", kind).
			With("claim", kind).Because(err)
	}
	return nil
}

// sign takes a linted TBSCertificate, with the poison and without, through the log to a
// checked certificate. p signs the precertificate, or the authority where it is nil.
func (i *Issuer) sign(ctx context.Context, a *authority.Authority, p *authority.PrecertificateSigner, l *leaf, poisoned, plain []byte, watch *stopwatch) (*Certificate, error) {
	final, scts := plain, []ctlog.SCT(nil)
	var leafHashes [][32]byte
	if i.log != nil {
		chain, err := precertify(ctx, a, p, l, poisoned, plain)
		if err != nil {
			return nil, err
		}
		watch.lap(stageSignPrecertificate)

		if scts, err = i.log.Submit(ctx, chain); err != nil {
			if p != nil && errors.Is(err, ctlog.ErrRefused) {
				i.RecheckSoon(a)
			}
			return nil, fmt.Errorf("ca: submitting the precertificate: %w", err)
		}
		if len(scts) == 0 {
			return nil, errors.New("ca: the log answered without an SCT")
		}
		for _, sct := range scts {
			hash, err := chain.LeafHash(sct)
			if err != nil {
				return nil, err
			}
			leafHashes = append(leafHashes, hash)
		}
		watch.lap(stageLog)

		list, err := sctListExtension(scts)
		if err != nil {
			return nil, err
		}
		if final, err = replaceExtension(poisoned, ctlog.OIDPoison, list); err != nil {
			return nil, err
		}
	}
	der, err := signTBS(ctx, a, final)
	if err != nil {
		return nil, err
	}
	watch.lap(stageSign)

	if err := check(a, der, plain, len(scts) > 0); err != nil {
		i.logger.ErrorContext(ctx, "a certificate failed the check after signing and was not released",
			slog.String("request_id", requestid.From(ctx)), slog.String("serial", l.serial.Text(16)), slog.Any("error", err))
		return nil, err
	}
	watch.lap(stageCheck)
	return &Certificate{
		Leaf: der, Chain: a.Chain, SCTs: scts, Serial: l.serial,
		NotBefore: l.notBefore, NotAfter: l.notAfter, chainPEM: a.ChainPEM, leafHashes: leafHashes,
	}, nil
}

// signTBS makes a certificate of a TBSCertificate, signed by the authority's key.
func signTBS(ctx context.Context, a *authority.Authority, tbs []byte) ([]byte, error) {
	sig, err := a.SignTBS(ctx, tbs)
	if err != nil {
		return nil, err
	}
	return assemble(tbs, a.SignatureAlgorithm, sig), nil
}

// check is what stands between the key and the client: the certificate parses, as
// clients read it, it says what was linted and logged and nothing else beside the SCT
// list, and its signature verifies under the issuing certificate, whose own path to the
// root was verified when the authority was loaded.
func check(a *authority.Authority, der, plain []byte, logged bool) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("ca: check: the certificate doesn't parse: %w", err)
	}
	got := c.RawTBSCertificate
	if logged {
		if got, err = replaceExtension(got, ctlog.OIDSCTList, nil); err != nil {
			return fmt.Errorf("ca: check: SCT list: %w", err)
		}
	}
	if !bytes.Equal(got, plain) {
		return errors.New("ca: check: the certificate differs from its precertificate")
	}
	if err := a.Verify(c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("ca: check: the signature doesn't verify under the issuing certificate: %w", err)
	}
	return nil
}

// recordUnbegun writes that an issuance failed before its intent, where the
// failure is ours. What is the client's to fix the server records as denied.
func (i *Issuer) recordUnbegun(ctx context.Context, a *authority.Authority, who identity.Principal, key proof.Key, cause error) {
	switch fault.From(cause).Kind() {
	case fault.Internal, fault.Unavailable, fault.DeadlineExceeded, fault.Canceled:
		i.trail.Failed(ctx, event(ctx, a, nil, who, key), cause)
	default:
	}
}

// event is the intent to issue l. Where l is nil it says only what every record of an
// issuance does: who asked, with which key, of which authority.
func event(ctx context.Context, a *authority.Authority, l *leaf, who identity.Principal, key proof.Key) audit.Event {
	e := audit.Event{
		RequestID:      requestid.From(ctx),
		Issuer:         who.Issuer(),
		IssuerType:     who.IssuerType(),
		Subject:        who.Subject(),
		SAN:            who.SAN().Value,
		SANType:        who.SAN().Kind.String(),
		KeyAlgorithm:   key.Algorithm(),
		KeyFingerprint: chain.Fingerprint(key.SPKI()),
		Authority:      a.Subject,
	}
	if l != nil {
		e.Type, e.Serial, e.NotBefore, e.NotAfter = audit.Intent, l.serial.Text(16), l.notBefore, l.notAfter
	}
	return e
}

// issued is the outcome of an issuance that succeeded.
func issued(intent audit.Event, c *Certificate) audit.Event {
	e := intent
	e.Type, e.Fingerprint = audit.Issued, chain.Fingerprint(c.Leaf)
	for n, sct := range c.SCTs {
		logged := audit.SCT{
			LogID: hex.EncodeToString(sct.LogID[:]), SCTTimestamp: time.UnixMilli(int64(sct.Timestamp)).UTC(),
			LeafHash: hex.EncodeToString(c.leafHashes[n][:]),
		}
		if index, ok := sct.LeafIndex(); ok {
			logged.LogIndex = &index
		}
		if n == 0 {
			e.SCT = logged
			continue
		}
		e.FurtherSCTs = append(e.FurtherSCTs, logged)
	}
	return e
}

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
	return all, metric.Register(r, seconds)
}

// stopwatch times the stages of one issuance, and traces them.
type stopwatch struct {
	issuer *Issuer
	ctx    context.Context
	last   time.Time
	next   stage
}

func (i *Issuer) stopwatch(ctx context.Context) stopwatch {
	return stopwatch{issuer: i, ctx: ctx, last: i.now()}
}

// lap ends stage s and begins the next.
func (w *stopwatch) lap(s stage) {
	t := w.issuer.now()
	w.issuer.stages[s].Observe(t.Sub(w.last).Seconds())
	tracing.Step(w.ctx, stageNames[s], w.last, t, "")
	if w.last, w.next = t, s+1; w.next == stageSignPrecertificate && w.issuer.log == nil {
		w.next = stageSign
	}
}

// stop traces the stage that err, if there is one, ended.
func (w *stopwatch) stop(err error) {
	if err != nil && tracing.On(w.ctx) {
		tracing.End(tracing.Start(w.ctx, stageNames[w.next], w.last), w.issuer.now(), err)
	}
}

// precertify signs the precertificate of l, whose TBSCertificate is poisoned, and plain
// without it, by p or, where p is nil, by the authority's key. The chain says of it
// what every log will find: the entry of the final certificate.
func precertify(ctx context.Context, a *authority.Authority, p *authority.PrecertificateSigner, l *leaf, poisoned, plain []byte) (ctlog.Chain, error) {
	c := ctlog.Chain{Issuers: a.Chain, IssuerKeyHash: a.KeyHash, TBS: plain}
	var err error
	if p == nil {
		c.Precertificate, err = signTBS(ctx, a, poisoned)
		return c, err
	}
	if err := ctx.Err(); err != nil {
		return c, fmt.Errorf("ca: signing: %w", err)
	}
	der, err := l.tbsOf(a.SignatureAlgorithm, p.Certificate.RawSubject, p.KeyID, poisonDER)
	if err != nil {
		return c, err
	}
	sig, err := p.SignTBS(der)
	if err != nil {
		return c, err
	}
	c.Precertificate, c.Issuers = assemble(der, a.SignatureAlgorithm, sig), p.Chain
	// The log derives what it promises from these bytes: so it is done here, before
	// a promise for something else is asked for.
	derived, err := ctlog.PrecertificateTBS(c.Precertificate, p.Certificate)
	if err != nil {
		return c, fmt.Errorf("ca: the precertificate can't be read back: %w", err)
	}
	if !bytes.Equal(derived, plain) {
		return c, errors.New("ca: the precertificate isn't that of the final certificate")
	}
	return c, nil
}

// replaceExtension returns a TBSCertificate with its one extension of the type oid
// replaced by with, an encoded extension, or taken out where with is empty. Every
// other byte and the order stay: that is what ties a certificate to its
// precertificate (RFC 6962 §3.1). Exactly one such extension must be there.
func replaceExtension(der []byte, oid asn1.ObjectIdentifier, with []byte) ([]byte, error) {
	before, extensions, err := tbs.Split(der)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	extensions, found, err := tbs.Replace(extensions, oid, func(cryptobyte.String) ([]byte, error) { return with, nil })
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if found != 1 {
		return nil, fmt.Errorf("ca: %d extensions where one is expected", found)
	}
	return tbs.Join(before, extensions), nil
}

// sctListExtension encodes the SCTs as the certificate carries them: an OCTET
// STRING inside the extension's own (RFC 6962 §3.3).
func sctListExtension(scts []ctlog.SCT) ([]byte, error) {
	list, err := ctlog.MarshalList(scts)
	if err != nil {
		return nil, fmt.Errorf("ca: encoding the SCT list: %w", err)
	}
	b := append(make([]byte, 0, len(list)+32), list...)
	return appendExtension(nil, oidSCTList, false, tbs.Wrap(b, 0, cryptobyteasn1.OCTET_STRING)), nil
}

// probeNames are whom a probe's precertificate may name: the first that the chain's name
// constraints leave. The top-level domain can't exist (RFC 2606 §2), so nobody has these
// identities or can be mistaken for them.
var probeNames = []identity.SAN{
	{Kind: identity.URI, Value: "https://nobody.invalid/mayfly-probe"},
	{Kind: identity.Email, Value: "mayfly-probe@nobody.invalid"},
	{Kind: identity.Username, Value: "mayfly-probe!nobody.invalid"},
}

// probe shows every log a precertificate that names no person, signed by p. It says
// what a client's would, but for the identity; no certificate follows it.
func (i *Issuer) probe(ctx context.Context, a *authority.Authority, p *authority.PrecertificateSigner) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // forgotten at once
	if err != nil {
		return fmt.Errorf("ca: making a key for a probe: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("ca: a probe's key: %w", err)
	}
	l, poisoned, plain, err := i.probeLeaf(a, spki)
	if err != nil {
		return err
	}
	intent := a.Intent(audit.PurposeProbe, l.spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = l.serial.Text(16), l.notBefore, l.notAfter
	intent.SAN, intent.SANType = l.san.Value, l.san.Kind.String()
	if err := i.trail.Record(ctx, intent); err != nil {
		return err
	}
	chain, err := precertify(ctx, a, p, l, poisoned, plain)
	if err == nil {
		err = i.log.Accepts(ctx, chain)
	}
	if err != nil {
		i.trail.Failed(ctx, intent, err)
		return err
	}
	done := intent
	done.Type = audit.Probed
	return i.trail.Record(ctx, done)
}

// probeLeaf is what a probe says, with the poison: a log may hold it to the constraints.
func (i *Issuer) probeLeaf(a *authority.Authority, spki []byte) (l *leaf, poisoned, plain []byte, err error) {
	for _, name := range probeNames {
		if l, err = i.newLeaf(a, spki, name, i.life.Lifetime); err != nil {
			return nil, nil, nil, err
		}
		if poisoned, plain, err = l.encode(a); err != nil {
			return nil, nil, nil, err
		}
		if err = permitted(a, l, plain); err == nil {
			return l, poisoned, plain, nil
		}
	}
	return nil, nil, nil, fmt.Errorf("ca: the chain's name constraints leave a probe no name: %w", err)
}
