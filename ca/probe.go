package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
)

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
	l, poisoned, err := i.probeLeaf(a, spki)
	if err != nil {
		return err
	}
	plain, err := replaceExtension(poisoned, ctlog.OIDPoison, nil)
	if err != nil {
		return err
	}
	intent := a.Intent(audit.PurposeProbe, l.spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = l.serial.Text(16), l.notBefore, l.notAfter
	intent.SAN, intent.SANType = l.san.Value, l.san.Kind.String()
	if err := i.trail.Record(ctx, intent); err != nil {
		return err
	}
	chain, err := precertify(ctx, a, p, poisoned, plain)
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
func (i *Issuer) probeLeaf(a *authority.Authority, spki []byte) (l *leaf, poisoned []byte, err error) {
	for _, name := range probeNames {
		if l, err = i.newLeaf(a, spki, name, i.life.Lifetime); err != nil {
			return nil, nil, err
		}
		if poisoned, err = l.tbs(a, poisonDER); err != nil {
			return nil, nil, err
		}
		if err = permitted(a, l, poisoned); err == nil {
			return l, poisoned, nil
		}
	}
	return nil, nil, fmt.Errorf("ca: the chain's name constraints leave a probe no name: %w", err)
}
