package authority

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

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
	return kms.Verify(a.Certificate.PublicKey, a.hash, pubkey.Digest(a.hash, tbs), sig)
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
	if !kms.Local(a.signer) { // a key in memory answers at once
		var cancel context.CancelFunc
		within, cancel = withReserve(ctx)
		defer cancel()
	}
	sig, err := a.signer.Sign(within, digest, opts)
	if err != nil {
		return nil, signerFault(ctx, err)
	}
	return sig, nil
}

// reserve is what a key that doesn't answer leaves of its request's time: with it
// the client is told that the key is out of reach, which is worth another try,
// and not only that the time is over.
const reserve = 500 * time.Millisecond

// withReserve ends the reserve before ctx does, but leaves at least nine tenths of
// the time.
func withReserve(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(reserve, time.Until(deadline)/10)))
}

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
