package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

// ephemeralIssuer is one issuing certificate whose key is in this process's memory.
type ephemeralIssuer struct {
	certificate *x509.Certificate
	authority   *Authority
	from, until time.Time // when it signs leaves, both included
}

// starting is g with another beginning.
func (g *ephemeralIssuer) starting(from time.Time) *ephemeralIssuer {
	a := *g.authority
	a.notBefore = from
	return &ephemeralIssuer{certificate: g.certificate, authority: &a, from: from, until: g.until}
}

// make makes an issuing certificate, checks it and keeps it in the history. It
// signs leaves once wait has passed.
func (e *Ephemeral) make(ctx context.Context, wait time.Duration) (*ephemeralIssuer, error) {
	ctx, cancel := context.WithTimeout(ctx, renewalTime)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := e.o.Trail.Now().UTC().Truncate(time.Second)
	lifetime := e.config.lifetime()
	if left := e.signing.notAfter.Sub(now).Truncate(time.Second); left < lifetime { // the signing CA's last days
		lifetime = left
	}
	draft, err := cacert.New(e.parent, cacert.Profile{
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
	g := &ephemeralIssuer{certificate: made.Chain[0], authority: a, from: now.Add(wait), until: a.notAfter.Add(time.Second - e.o.Lifetime)}
	a.notBefore = g.from // it isn't shared yet
	e.o.Trail.Logger.InfoContext(ctx, "a new issuing certificate", slog.String("subject", a.Subject), slog.String("sha256", chain.Fingerprint(g.certificate.Raw)),
		slog.Time("not_after", a.notAfter), slog.Time("issues_from", g.from))
	return g, nil
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
