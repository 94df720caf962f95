package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// A precertificate signing certificate's life. Its key is in memory, so each start
// makes another; days bound what a stolen one is good for, and leave two of them
// to a KMS or a log that is down when it is to be renewed.
const (
	presignerLifetime = 72 * time.Hour
	presignerRenewal  = 24 * time.Hour
	presignerBackdate = 5 * time.Minute // a log's clock may be behind ours
)

// presignerRSABits is for an authority whose key is RSA.
const presignerRSABits = 2048

// presigner is a precertificate signing certificate (RFC 6962 §3.1) and its key,
// which is in memory: what it signs costs no signature of the authority's key.
type presigner struct {
	certificate    *x509.Certificate
	key            crypto.Signer
	chain          [][]byte  // DER: its certificate, the issuing one, …, the root
	authorityKeyID []byte    // the whole extension in DER that names its key
	renew          time.Time // when another is to take its place
}

// covers reports whether what p signs is within p's validity.
func (p *presigner) covers(notBefore, notAfter time.Time) bool {
	return !notBefore.Before(p.certificate.NotBefore) && !notAfter.After(p.certificate.NotAfter)
}

// presignerKey makes a key that signs with the authority's algorithm: a
// TBSCertificate names it, and must fit the precertificate's signature as well as
// the final one's (RFC 6962 §3.2). ECDSA's names no curve, so P-256 does for all.
func (a *Authority) presignerKey() (crypto.Signer, error) {
	if _, ok := a.signer.Public().(*rsa.PublicKey); ok {
		return rsa.GenerateKey(rand.Reader, presignerRSABits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// presignerTemplate is what a presigner's certificate says. Its life ends with the
// authority's at the latest.
func (a *Authority) presignerTemplate(serial *big.Int, now time.Time) *x509.Certificate {
	notBefore := now.UTC().Truncate(time.Second).Add(-presignerBackdate)
	notAfter := now.UTC().Truncate(time.Second).Add(presignerLifetime)
	if notBefore.Before(a.notBefore) {
		notBefore = a.notBefore
	}
	if notAfter.After(a.notAfter) {
		notAfter = a.notAfter
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: a.issuer.Subject.Organization, CommonName: "Precertificate signing"},
		NotBefore:    notBefore, NotAfter: notAfter,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		KeyUsage:           x509.KeyUsageCertSign,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{ctlog.OIDPrecertificateSigning}, // that one alone: it signs nothing that anybody else accepts
	}
}

// newPresigner certifies key, with one signature of the authority's. The error is
// classified where the authority's key can't be used.
func (a *Authority) newPresigner(ctx context.Context, template *x509.Certificate, key crypto.Signer, now time.Time) (*presigner, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing key: %w", err)
	}
	if template.SubjectKeyId, err = keyID(spki); err != nil {
		return nil, err
	}
	issuer := &bound{ctx: ctx, authority: a}
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuer, key.Public(), issuer)
	if err != nil {
		return nil, errors.Join(issuer.err, fmt.Errorf("ca: the precertificate signing certificate: %w", err))
	}
	p := &presigner{key: key, renew: never, chain: append([][]byte{der}, a.chain...)}
	if p.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing certificate: %w", err)
	}
	if !ctlog.SignsPrecertificates(p.certificate) || !bytes.Equal(p.certificate.RawIssuer, a.name) {
		return nil, errors.New("ca: the precertificate signing certificate doesn't say what it should")
	}
	if p.certificate.NotAfter.Before(a.notAfter) {
		p.renew = now.Add(presignerRenewal)
	}
	p.authorityKeyID, err = authorityKeyID(p.certificate.SubjectKeyId)
	return p, err
}

// bound is the authority's key as crypto/x509 wants it, for one call.
type bound struct {
	ctx       context.Context //nolint:containedctx // crypto.Signer has no context; this one lives as long as the call
	authority *Authority
	err       error // what signing failed with: crypto/x509 may hide it
}

// Public is the authority's.
func (b *bound) Public() crypto.PublicKey { return b.authority.signer.Public() }

// Sign signs with the authority's key, within its quota.
func (b *bound) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var sig []byte
	sig, b.err = b.authority.signDigest(b.ctx, digest, opts.HashFunc())
	return sig, b.err
}

// precertify signs the precertificate of a TBSCertificate with the poison, plain
// without it, by p or, where p is nil, by the authority's key. The chain says of it
// what every log will find: the entry of the final certificate.
func (a *Authority) precertify(ctx context.Context, p *presigner, poisoned, plain []byte) (ctlog.Chain, error) {
	c := ctlog.Chain{Issuers: a.chain, IssuerKeyHash: a.keyHash, TBS: plain}
	var err error
	if p == nil {
		c.Precertificate, err = a.sign(ctx, poisoned)
		return c, err
	}
	if err := ctx.Err(); err != nil {
		return c, fmt.Errorf("ca: signing: %w", err)
	}
	tbs, err := replaceIssuer(poisoned, p.certificate.RawSubject)
	if err != nil {
		return c, err
	}
	if tbs, err = replaceExtension(tbs, oidAuthority, p.authorityKeyID); err != nil {
		return c, err
	}
	h := a.hash.New()
	_, _ = h.Write(tbs) // a hash never fails
	sig, err := p.key.Sign(rand.Reader, h.Sum(nil), a.hash)
	if err != nil {
		return c, fmt.Errorf("ca: signing the precertificate: %w", err)
	}
	if c.Precertificate, err = a.assemble(tbs, sig); err != nil {
		return c, err
	}
	c.Issuers = p.chain
	// The log derives what it promises from these bytes: so it is done here, before
	// a promise for something else is asked for.
	derived, err := ctlog.PrecertificateTBS(c.Precertificate, p.certificate)
	if err != nil {
		return c, fmt.Errorf("ca: the precertificate can't be read back: %w", err)
	}
	if !bytes.Equal(derived, plain) {
		return c, errors.New("ca: the precertificate isn't that of the final certificate")
	}
	return c, nil
}

// replaceIssuer returns tbs with another issuer, in DER (RFC 5280 §4.1), and every
// other byte as it was.
func replaceIssuer(tbs, name []byte) ([]byte, error) {
	input := cryptobyte.String(tbs)
	var fields, version, serial, algorithm, issuer cryptobyte.String
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !input.Empty() {
		return nil, errTBS
	}
	rest := fields
	if !rest.ReadASN1Element(&version, tagVersion) || !rest.ReadASN1Element(&serial, cryptobyteasn1.INTEGER) ||
		!rest.ReadASN1Element(&algorithm, cryptobyteasn1.SEQUENCE) {
		return nil, errTBS
	}
	before := fields[:len(fields)-len(rest)]
	if !rest.ReadASN1Element(&issuer, cryptobyteasn1.SEQUENCE) {
		return nil, errTBS
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(name)+8))
	b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		b.AddBytes(name)
		b.AddBytes(rest)
	})
	return b.Bytes()
}
