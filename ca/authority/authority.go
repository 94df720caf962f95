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
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
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
	lease               *lease

	path   string // of the configuration that it was loaded from
	config Config // and what that said

	trial     *chain.Replica // of a chain with name constraints; nil: it takes every name
	quota     *quota         // of signer; nil: none
	renewal   *renewal       // of its precertificate signer; nil: the authority's key signs precertificates itself
	signingCA *signingCA     // nil but for an authority that certifies ephemeral issuers and signs no leaf
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
		hash:               algorithm.Hash(),
		signer:             signer,
		lease:              newLease(signer),
		path:               singlePath,
		config:             c,
		quota:              newQuota(c.SigningQuota),
	}
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
	if a.KeyID, err = authorityKeyID(issuer.SubjectKeyId); err != nil {
		return nil, err
	}
	if c.PrecertificateSigner == SignerOn || c.PrecertificateSigner != SignerOff && !kms.Local(signer) {
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
func authorityKeyID(keyID []byte) ([]byte, error) {
	value, err := asn1.Marshal(struct {
		KeyID []byte `asn1:"tag:0"`
	}{keyID})
	if err != nil {
		return nil, fmt.Errorf("ca: the authority's key identifier: %w", err)
	}
	der, err := asn1.Marshal(pkix.Extension{Id: OIDKeyID, Value: value})
	if err != nil {
		return nil, fmt.Errorf("ca: the authority's key identifier: %w", err)
	}
	return der, nil
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
	case a.signingCA != nil:
		return errors.New("ca: a signing CA was asked for a leaf")
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
// signature isn't looked at, so it is asked before there is one.
func (a *Authority) Permits(leaf *x509.Certificate) error {
	if a.trial == nil {
		return nil
	}
	return a.trial.Takes(leaf)
}

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
