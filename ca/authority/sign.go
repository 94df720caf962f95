package authority

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Admit takes so many signatures of the key's quota, and returns when it is their
// turn. Its errors are a *fault.Error with reason SigningQuota, or the context's.
func (a *Authority) Admit(ctx context.Context, signatures int) error {
	return a.quota.admit(ctx, signatures)
}

// SignTBS signs a TBSCertificate with the authority's key and gives the signature.
func (a *Authority) SignTBS(ctx context.Context, tbs []byte) ([]byte, error) {
	return a.Sign(ctx, a.digest(tbs), a.hash)
}

// Verify checks a signature over a TBSCertificate by the key in the issuing certificate.
func (a *Authority) Verify(tbs, sig []byte) error {
	return kms.Verify(a.Certificate.PublicKey, a.hash, a.digest(tbs), sig)
}

func (a *Authority) digest(tbs []byte) []byte {
	h := a.hash.New()
	_, _ = h.Write(tbs) // a hash never fails
	return h.Sum(nil)
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
