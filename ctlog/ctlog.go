// Package ctlog turns a precertificate chain into a verified signed certificate
// timestamp (SCT): the promise of a Certificate Transparency log that what
// Mayfly is about to issue is, or soon will be, in public view (RFC 6962).
//
// A log is a [Log]: our own is in ctlog/embedded, anybody else's in ctlog/external.
// [Policy] asks the logs in their order, and lets nothing pass that it has not
// verified itself.
package ctlog

import (
	"context"
	"crypto"
	"time"
)

// Chain is what a log is asked to record: a precertificate, the path from it to
// the root, and the two values that the log's signature covers. The path begins
// with a precertificate signing certificate where one signed (RFC 6962 §3.1);
// the two values are then still those of the issuer of the final certificate.
type Chain struct {
	Precertificate []byte   // DER, with the poison extension
	Issuers        [][]byte // DER: the certificate that signed the precertificate, …, the root
	IssuerKeyHash  [32]byte // SHA-256 of the SubjectPublicKeyInfo of the final certificate's issuer
	TBS            []byte   // DER of the TBSCertificate without poison and SCT list: what the log signs (RFC 6962 §3.2)
}

// Description is what the world must know to accept a log's SCTs. It goes into
// the trust root.
type Description struct {
	ID       [32]byte  // SHA-256 of SPKI (RFC 6962 §3.2)
	SPKI     []byte    // DER SubjectPublicKeyInfo of the log's key
	URL      string    // where the log is served: its prefix without a final slash
	Operator string    // who runs the log, for people and for operator diversity
	Start    time.Time // the log is used from this moment; zero: no bound
	End      time.Time // the log is not used from this moment on; zero: no bound
}

// Holds reports whether the log may be used at the time t: not before Start, and before End.
func (d Description) Holds(t time.Time) bool {
	return !t.Before(d.Start) && (d.End.IsZero() || t.Before(d.End))
}

// window puts what Start and End bound into words that follow the log's URL.
func (d Description) window() (text string) {
	if !d.Start.IsZero() {
		text = " from " + d.Start.UTC().Format(time.RFC3339)
	}
	if !d.End.IsZero() {
		text += " until " + d.End.UTC().Format(time.RFC3339)
	}
	return text
}

// Log takes submissions. Its answers are unverified: only [Policy] vouches for an SCT.
type Log interface {
	// Submit asks the log to record the chain. It ends when ctx ends, at the latest.
	// The chain may be in the log even where Submit returns an error. An error that
	// another log or a later attempt may mend is a *fault.Error of kind Unavailable.
	Submit(ctx context.Context, chain Chain) (SCT, error)
	// Description is the log's as the trust root states it. Only its end may move.
	Description() Description
	// Ready is nil when the log is able to take submissions now, and a [fault.Warning]
	// when it is but something about it calls for its operator.
	Ready(ctx context.Context) error
}

// Signer is a log's private key. The signers of ca/kms are such.
type Signer interface {
	Public() crypto.PublicKey
	// Sign returns an ASN.1 DER ECDSA signature over the digest.
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}
