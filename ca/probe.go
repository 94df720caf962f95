package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
)

// probeName is whom a probe's precertificate names. The top-level domain can't
// exist (RFC 2606 §2), so nobody has this identity or can be mistaken for it.
const probeName = "https://nobody.invalid/mayfly-probe"

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
	l, err := i.newLeaf(a, spki, identity.SAN{Kind: identity.URI, Value: probeName}, i.life.Lifetime)
	if err != nil {
		return err
	}
	poisoned, err := l.tbs(a, poisonDER)
	if err != nil {
		return err
	}
	plain, err := replaceExtension(poisoned, ctlog.OIDPoison, nil)
	if err != nil {
		return err
	}
	intent := a.Intent(audit.PurposeProbe, l.spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = hex.EncodeToString(l.serial.Bytes()), l.notBefore, l.notAfter
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
