package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/tbs"
)

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
