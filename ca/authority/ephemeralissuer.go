package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

// generation is one issuing certificate whose key is in this process's memory.
type generation struct {
	certificate *x509.Certificate
	authority   *Authority
	from, until time.Time // when it signs leaves, both included
}

// starting is g with another beginning.
func (g *generation) starting(from time.Time) *generation {
	a := *g.authority
	a.notBefore = from
	return &generation{certificate: g.certificate, authority: &a, from: from, until: g.until}
}

// make makes an issuing certificate, checks it and keeps it in the history. It
// signs leaves once wait has passed.
func (e *Ephemeral) make(ctx context.Context, wait time.Duration) (*generation, error) {
	ctx, cancel := context.WithTimeout(ctx, renewalTime)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := e.now().UTC().Truncate(time.Second)
	lifetime := e.config.lifetime()
	if left := e.signing.notAfter.Sub(now).Truncate(time.Second); left < lifetime { // the signing CA's last days
		lifetime = left
	}
	c, err := ceremony.New(e.parent, ceremony.Profile{
		CommonName: "Issuing " + now.Format("20060102T150405Z") + " " + rand.Text()[:8], Lifetime: lifetime,
	}, ceremony.Circumstances{Now: now})
	if err != nil {
		return nil, err
	}
	if err := c.For(key.Public(), "in memory"); err != nil {
		return nil, err
	}
	made, err := e.certify(ctx, c, key.Public())
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(made.Chain, kms.InMemory(key))
	if err != nil {
		return nil, err
	}
	if err := kms.Try(ctx, a.signer); err != nil {
		return nil, err
	}
	if err := e.history.add(made.Chain[0]); err != nil { // what isn't kept is never used
		return nil, fmt.Errorf("keeping it in the history: %w", err)
	}
	g := &generation{certificate: made.Chain[0], authority: a, from: now.Add(wait), until: a.notAfter.Add(time.Second - e.leaf)}
	a.notBefore = g.from // it isn't shared yet
	e.logger.InfoContext(ctx, "a new issuing certificate", slog.String("subject", a.words), slog.String("sha256", ceremony.SHA256(g.certificate)),
		slog.Time("not_after", a.notAfter), slog.Time("issues_from", g.from))
	return g, nil
}

// certify has the signing CA sign, on record before and after.
func (e *Ephemeral) certify(ctx context.Context, c *ceremony.Ceremony, public crypto.PublicKey) (*ceremony.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	intent := own(audit.PurposeIssuing, e.signing, spki)
	if err := e.trail.record(ctx, intent); err != nil {
		return nil, err
	}
	made, err := c.Sign(ceremony.Key{Signer: ceremony.Using(ctx, e.signing.signer), Ref: "the signing CA's key"})
	if err != nil {
		e.trail.failed(ctx, intent, err)
		return nil, err
	}
	done, signed := intent, made.Chain[0]
	fingerprint := sha256.Sum256(signed.Raw)
	done.Type, done.Serial, done.Fingerprint = audit.Issued, hex.EncodeToString(signed.SerialNumber.Bytes()), hex.EncodeToString(fingerprint[:])
	done.NotBefore, done.NotAfter = signed.NotBefore, signed.NotAfter
	return made, e.trail.record(ctx, done)
}
