// Package authority keeps the certificate authorities that a CA has: their chains
// and keys, the states that decide which of them signs and which of them clients
// trust, and what keeps the one that signs able to sign.
//
// [LoadSet] reads the configured authorities. [InForce] holds the ones in force,
// lends the active one to each request, and renews its precertificate signing
// certificate. An authority of the mode ephemeral certifies issuing CAs whose keys
// are in memory; [Ephemeral] renews those. What a leaf certificate says is not
// known here: package ca, above, decides it.
package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// MaxLeafLifetime is the longest that a leaf may live: signing clients use a
// certificate once, at once, and there is no revocation to shorten what is too long.
const MaxLeafLifetime = time.Hour

// Authority is a certificate chain and the key of its first certificate, with all
// that is the same in every certificate it issues. Nothing that it says ever
// changes; callers must not write to what its fields hold.
type Authority struct {
	Certificate *x509.Certificate // the issuing one
	Chain       [][]byte          // DER: the issuing certificate, …, the root
	ChainPEM    []string          // the same in PEM
	Subject     string            // the issuing certificate's, for records

	KeyHash            [sha256.Size]byte // SHA-256 of the issuer's SubjectPublicKeyInfo: RFC 6962 §3.2
	SignatureAlgorithm []byte            // AlgorithmIdentifier of its signatures, in DER
	KeyID              []byte            // the authority key identifier, the whole extension in DER

	notBefore, notAfter time.Time // where all of the chain is valid
	hash                crypto.Hash
	signer              kms.Signer
	holders             *atomic.Int64 // of the key: its owner, and each request that reads it; the last to leave closes it

	path   string // of the configuration that it was loaded from
	config Config // and what that said

	trial   *chain.Replica // of a chain with name constraints; nil: it takes every name
	quota   *quota         // of signer; nil: none
	renewal *renewal       // of its precertificate signer; nil: the authority's key signs precertificates itself
	history *history       // nil but for an authority that certifies ephemeral issuers and signs no leaf
}

// New makes an authority of a checked chain and the key of its first certificate.
// c says how the key is used.
func New(certs []*x509.Certificate, signer kms.Signer, c Config) (*Authority, error) {
	algorithm, err := kms.AlgorithmOf(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the authority's key: %w", err)
	}
	issuer := certs[0]
	a := &Authority{
		Certificate:        issuer,
		Subject:            chain.Subject(issuer),
		KeyHash:            sha256.Sum256(issuer.RawSubjectPublicKeyInfo),
		SignatureAlgorithm: signatureAlgorithm(signer.Public(), algorithm.Hash()),
		KeyID:              authorityKeyID(issuer.SubjectKeyId),
		hash:               algorithm.Hash(),
		signer:             signer,
		holders:            new(atomic.Int64),
		path:               singlePath,
		config:             c,
		quota:              newQuota(c.SigningQuota),
	}
	a.holders.Store(1) // the owner
	a.notBefore, a.notAfter = window(certs)
	if chain.Constrained(certs) {
		if a.trial, err = chain.NewReplica(certs, 0); err != nil {
			return nil, err
		}
	}
	for _, c := range certs {
		a.Chain = append(a.Chain, c.Raw)
		a.ChainPEM = append(a.ChainPEM, chain.Encode(c.Raw))
	}
	if c.PrecertificateSigner == SignerOn || c.PrecertificateSigner != SignerOff && c.SealedKey == "" && !kms.Local(signer) { // a sealed key will be in memory
		a.renewal = &renewal{required: c.PrecertificateSigner == SignerOn}
	}
	return a, nil
}

// window is when all certificates of a chain are valid.
func window(certs []*x509.Certificate) (notBefore, notAfter time.Time) {
	notBefore, notAfter = certs[0].NotBefore, certs[0].NotAfter
	for _, c := range certs {
		notBefore, notAfter = later(notBefore, c.NotBefore), earlier(notAfter, c.NotAfter)
	}
	return notBefore, notAfter
}

// OIDKeyID is the type of the authority key identifier (RFC 5280 §4.2.1.1).
var OIDKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

// authorityKeyID is the extension that names an issuer's key.
func authorityKeyID(keyID []byte) []byte {
	value, _ := asn1.Marshal(struct { // all of it has a form in DER
		KeyID []byte `asn1:"tag:0"`
	}{keyID})
	der, _ := asn1.Marshal(pkix.Extension{Id: OIDKeyID, Value: value})
	return der
}

// signatureAlgorithm is the AlgorithmIdentifier of the authority's signatures.
// ECDSA has no parameters (RFC 5758 §3.2), RSA has NULL (RFC 4055 §5).
func signatureAlgorithm(public crypto.PublicKey, hash crypto.Hash) []byte {
	if _, ok := public.(*ecdsa.PublicKey); !ok { // sha256WithRSAEncryption 1.2.840.113549.1.1.11
		return []byte{0x30, 0x0d, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00}
	}
	last := map[crypto.Hash]byte{crypto.SHA256: 2, crypto.SHA384: 3, crypto.SHA512: 4}[hash] // ecdsa-with-SHA256 1.2.840.10045.4.3.2
	return []byte{0x30, 0x0a, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last}
}

// Validity is the time in which every certificate of the chain is valid, both
// ends included.
func (a *Authority) Validity() (notBefore, notAfter time.Time) { return a.notBefore, a.notAfter }

// Covers is nil when a leaf of that validity may be issued: one must not outlive
// any of its issuers, nor begin before them.
func (a *Authority) Covers(notBefore, notAfter time.Time) error {
	switch {
	case a.history != nil:
		return fault.New(fault.SignerUnavailable, "the certificate authority has no issuing certificate at the moment; try again later").
			Because(fmt.Errorf("authority %s signs issuing certificates alone, and none could be made since the start", a.Subject))
	case notBefore.Before(a.notBefore):
		return fault.New(fault.SignerUnavailable, "the certificate authority isn't valid yet; try again later").
			Because(fmt.Errorf("authority %s issues from %v", a.Subject, a.notBefore))
	case notAfter.After(a.notAfter):
		return fault.New(fault.SignerUnavailable, "the certificate authority's own certificate is about to expire, or has; its operator must renew it").
			Because(fmt.Errorf("authority %s is valid to %v", a.Subject, a.notAfter))
	}
	return nil
}

// BoundsNames reports whether only some names may be certified; Permits says which.
func (a *Authority) BoundsNames() bool { return a.trial != nil }

// Permits is nil when clients will take a leaf that says what this one does. Its
// signature isn't looked at, so it is asked before there is one, and only where BoundsNames.
func (a *Authority) Permits(leaf *x509.Certificate) error { return a.trial.Takes(leaf) }

// Intent is the record that begins what the CA signs for itself, by its purpose
// and the key that is certified.
func (a *Authority) Intent(purpose string, spki []byte) audit.Event {
	return audit.Event{Type: audit.Intent, Purpose: purpose, Authority: a.Subject, KeyFingerprint: chain.Fingerprint(spki)}
}

// issued is the outcome of an intent that a certificate came of.
func issued(intent audit.Event, c *x509.Certificate) audit.Event {
	e := intent
	e.Type, e.Fingerprint = audit.Issued, chain.Fingerprint(c.Raw)
	e.Serial = c.SerialNumber.Text(16)
	e.NotBefore, e.NotAfter = c.NotBefore, c.NotAfter
	return e
}

// Admit takes so many signatures of the key's quota, and returns when it is their
// turn. Its errors are a *fault.Error with reason SigningQuota, or the context's.
func (a *Authority) Admit(ctx context.Context, signatures int) error {
	return a.quota.admit(ctx, signatures)
}

// SignTBS signs a TBSCertificate with the authority's key and gives the signature.
func (a *Authority) SignTBS(ctx context.Context, tbs []byte) ([]byte, error) {
	return a.Sign(ctx, pubkey.Digest(a.hash, tbs), a.hash)
}

// Verify checks a signature over a TBSCertificate by the key in the issuing certificate.
func (a *Authority) Verify(tbs, sig []byte) error {
	return pubkey.Verify(a.Certificate.PublicKey, a.hash, pubkey.Digest(a.hash, tbs), sig)
}

// Public is the authority's key.
func (a *Authority) Public() crypto.PublicKey { return a.signer.Public() }

// Sign is the one place where an authority's key is used for what a request waits for:
// a leaf, a precertificate, or the certificate of a precertificate signer. The key's
// quota paces it. Its errors are classified. Only health checks, and the signing CA of
// the mode ephemeral, which certifies a few issuers a day, sign past it and the quota.
func (a *Authority) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := a.quota.pace(ctx); err != nil {
		return nil, fmt.Errorf("ca: signing: %w", err)
	}
	within := ctx
	if deadline, ok := ctx.Deadline(); ok && !kms.Local(a.signer) { // a key in memory answers at once
		var cancel context.CancelFunc
		within, cancel = context.WithDeadline(ctx, deadline.Add(-min(reserve, time.Until(deadline)/10)))
		defer cancel()
	}
	sig, err := a.signer.Sign(within, digest, opts)
	if err != nil {
		return nil, signerFault(ctx, err)
	}
	return sig, nil
}

// reserve is what a key that doesn't answer leaves of its request's time, but a tenth of
// it at most: with it the client is told that the key is out of reach, which is worth
// another try, and not only that the time is over.
const reserve = 500 * time.Millisecond

// signerFault classifies what a signer failed with: the request's own end, or a
// key that is out of reach.
func signerFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ca: signing: %w", errors.Join(ctx.Err(), err))
	}
	return fault.New(fault.SignerUnavailable, "the certificate authority's key can't be used at the moment; try again").
		With("dependency", "signer").Because(err)
}

// How long an issuance waits for its turn at most: long enough that a short burst
// passes, short enough that nobody waits who would rather ask another replica.
const (
	leastPatience = 100 * time.Millisecond
	mostPatience  = time.Second
	patientTurns  = 16 // so many signatures may be waited for, within these bounds
)

// quotaRetry is when a client that was refused may ask again.
const quotaRetry = time.Second

// errQuota is why the quota refused; the client's text is in its fault.
var errQuota = errors.New("more certificates are asked for than signing_quota allows")

// quota keeps the signatures of a key under a rate, its own and not the KMS's: an
// issuance is admitted before anything is signed, in the order of asking and at
// even distances, or refused at once; and a signature waits where it would be one
// too many within a second, as when the log held several issuances up. It holds
// nobody but who is admitted, each for [quota.patience] at most. A nil quota
// admits all.
//
// Its clock is the machine's: it measures durations, not the time of day.
type quota struct {
	interval time.Duration // from one signature to the next
	patience time.Duration

	mu       sync.Mutex
	admitted time.Time   // from when on the next issuance's signatures are free
	signed   []time.Time // when the last signatures were due, as many as a second may see
	oldest   int         // of them
}

// newQuota is a quota of so many signatures a second; nil for 0.
func newQuota(perSecond int) *quota {
	if perSecond <= 0 {
		return nil
	}
	interval := time.Second / time.Duration(perSecond)
	return &quota{
		interval: interval, patience: min(max(patientTurns*interval, leastPatience), mostPatience),
		signed: make([]time.Time, perSecond),
	}
}

// free is from when on the next signature may be made: a second after the one that
// it must not share a second with.
func (q *quota) free() time.Time { return q.signed[q.oldest].Add(time.Second) }

// admit takes so many signatures of the quota and returns when it is their turn.
// Its errors are a *fault.Error with reason SigningQuota, or the context's.
func (q *quota) admit(ctx context.Context, signatures int) error {
	if q == nil {
		return nil
	}
	now := time.Now()
	q.mu.Lock()
	due := later(q.admitted, now)
	if wait := later(due, q.free()).Sub(now); wait > q.patience {
		q.mu.Unlock()
		return fault.New(fault.SigningQuota, "more certificates are asked for at the moment than the certificate authority's key may sign; try again later").
			With("dependency", "signer").After(quotaRetry).
			Because(fmt.Errorf("%w: a turn would come in %v, and %v is the most to wait", errQuota, wait, q.patience))
	}
	q.admitted = due.Add(time.Duration(signatures) * q.interval)
	q.mu.Unlock()
	return wait.For(ctx, due.Sub(now))
}

// pace returns when a signature may be made. The wait is that of the signatures
// admitted before it.
func (q *quota) pace(ctx context.Context) error {
	if q == nil {
		return nil
	}
	now := time.Now()
	q.mu.Lock()
	due := later(q.free(), now)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(due) { // it would never be made: leave the turn to another
		q.mu.Unlock()
		return fmt.Errorf("%w before its turn to sign, in %v", context.DeadlineExceeded, due.Sub(now))
	}
	q.signed[q.oldest], q.oldest = due, (q.oldest+1)%len(q.signed)
	q.mu.Unlock()
	return wait.For(ctx, due.Sub(now))
}
