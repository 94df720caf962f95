package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Authority is a certificate chain and the key of its first certificate, checked
// by LoadAuthority, with all that is the same in every certificate it issues.
// Nothing that it says ever changes.
type Authority struct {
	chain               [][]byte // DER: the issuing certificate, …, the root
	chainPEM            []string
	issuer              *x509.Certificate // chain[0]
	notBefore, notAfter time.Time         // where all of the chain is valid
	signer              kms.Signer
	lease               *lease
	hash                crypto.Hash

	path               string            // of the configuration that it was loaded from
	config             AuthorityConfig   // and what that said
	words              string            // the issuing certificate's subject, for records
	keyHash            [sha256.Size]byte // SHA-256 of the issuer's SubjectPublicKeyInfo: RFC 6962 §3.2
	name               []byte            // the issuer's name in DER, byte for byte its subject
	signatureAlgorithm []byte            // AlgorithmIdentifier in DER
	authorityKeyID     []byte            // the whole extension in DER

	quota      *quota      // of signer; nil: none
	presigning *presigning // nil: the authority's key signs precertificates itself
	certifier  *certifier  // nil but for an authority that certifies ephemeral issuing CAs and signs no leaf
}

// single is the path of the configuration's one authority.
const single = "ca.authority"

// LoadAuthority reads an authority's chain, opens its key, and checks that they
// fit each other and may issue code-signing certificates at the time now. Its
// error is a *setting.FaultError with every fault, each with its mend. o has what
// the key's backend works with; what c says of the key takes its place.
func LoadAuthority(ctx context.Context, c AuthorityConfig, now time.Time, o kms.Options) (*Authority, error) {
	return loadAuthority(ctx, single, c, chain.Need{Now: now, Lifetime: MaxLifetime}, o)
}

// loadAuthority is LoadAuthority for the authority at path of the configuration.
func loadAuthority(ctx context.Context, path string, c AuthorityConfig, need chain.Need, o kms.Options) (*Authority, error) {
	var f setting.Faults
	c.check(path, &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	certs := loadChain(path, c, need, &f)
	var ephemeral *certifier
	if c.mode() == ModeEphemeral && len(certs) > 0 {
		ephemeral = newCertifier(c.Ephemeral, certs, path, &f)
	}
	signer, err := kms.Open(ctx, string(c.Key), c.options(o))
	if err != nil {
		f.Add(path+".key", "%v", err)
	} else {
		checkKey(path, c, certs, signer, &f)
	}
	if err := f.Err(); err != nil {
		kms.Close(signer)
		return nil, err
	}
	a, err := newAuthority(certs, signer)
	if err != nil {
		return nil, err
	}
	a.path, a.config = path, c
	a.quota = newQuota(c.SigningQuota)
	if a.certifier = ephemeral; ephemeral != nil {
		return a, nil
	}
	if c.PrecertificateSigner == PresignOn || c.PrecertificateSigner != PresignOff && !kms.Local(signer) {
		a.presigning = &presigning{required: c.PrecertificateSigner == PresignOn}
	}
	return a, nil
}

// checkKey wants the key to be that of the first certificate.
func checkKey(path string, c AuthorityConfig, certs []*x509.Certificate, signer kms.Signer, f *setting.Faults) {
	if len(certs) > 0 && !samePublic(certs[0].PublicKey, signer.Public()) {
		f.Add(path+".key", "isn't the key of the first certificate (%s) in %s: name the issuing certificate's key, or put its certificate first",
			chain.Subject(certs[0]), c.Chain)
	}
}

// loadChain reads and checks the chain file of the authority at path of the
// configuration, and gives what certificates it has. Without a time in need, it is
// held to the time when all of it began.
func loadChain(path string, c AuthorityConfig, need chain.Need, f *setting.Faults) []*x509.Certificate {
	file := string(c.Chain)
	if c.mode() == ModeEphemeral {
		need.Below = 1
	}
	b, err := os.ReadFile(file)
	if err != nil {
		f.Add(path+".chain", "%v", err)
		return nil
	}
	certs, err := chain.Parse(b)
	if err != nil {
		f.Add(path+".chain", "%s: %v", file, err)
		return nil
	}
	if need.Now.IsZero() {
		need.Now, _ = window(certs)
	}
	chain.Check(certs, need, func(format string, args ...any) {
		f.Add(path+".chain", "%s: %s", file, fmt.Sprintf(format, args...))
	})
	return certs
}

// window is when all certificates of a chain are valid.
func window(certs []*x509.Certificate) (notBefore, notAfter time.Time) {
	notBefore, notAfter = certs[0].NotBefore, certs[0].NotAfter
	for _, c := range certs {
		if c.NotBefore.After(notBefore) {
			notBefore = c.NotBefore
		}
		if c.NotAfter.Before(notAfter) {
			notAfter = c.NotAfter
		}
	}
	return notBefore, notAfter
}

// samePublic reports whether two public keys of any types are equal.
func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// newAuthority computes what is constant over the authority's life.
func newAuthority(certs []*x509.Certificate, signer kms.Signer) (*Authority, error) {
	algorithm, err := kms.AlgorithmOf(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the authority's key: %w", err)
	}
	issuer := certs[0]
	a := &Authority{
		issuer:             issuer,
		words:              chain.Subject(issuer),
		signer:             signer,
		lease:              newLease(signer),
		hash:               algorithm.Hash(),
		keyHash:            sha256.Sum256(issuer.RawSubjectPublicKeyInfo),
		name:               issuer.RawSubject,
		signatureAlgorithm: signatureAlgorithm(signer.Public(), algorithm.Hash()),
	}
	a.notBefore, a.notAfter = window(certs)
	for _, c := range certs {
		a.chain = append(a.chain, c.Raw)
		a.chainPEM = append(a.chainPEM, encodePEM(c.Raw))
	}
	if a.authorityKeyID, err = authorityKeyID(issuer.SubjectKeyId); err != nil {
		return nil, err
	}
	return a, nil
}

// authorityKeyID is the extension that names an issuer's key (RFC 5280 §4.2.1.1).
func authorityKeyID(keyID []byte) ([]byte, error) {
	var b cryptobyte.Builder
	addExtension(&b, oidAuthority, false, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tagKeyID, func(b *cryptobyte.Builder) { b.AddBytes(keyID) })
		})
	})
	der, err := b.Bytes()
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
	last := byte(2) // ecdsa-with-SHA256 1.2.840.10045.4.3.2
	switch hash {
	case crypto.SHA384:
		last = 3
	case crypto.SHA512:
		last = 4
	}
	return []byte{0x30, 0x0a, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last}
}

// Chain is the chain in DER, from the issuing certificate to the self-signed
// root. Callers must not write to it.
func (a *Authority) Chain() [][]byte { return a.chain }

// Validity is the time in which every certificate of the chain is valid, both
// ends included.
func (a *Authority) Validity() (notBefore, notAfter time.Time) { return a.notBefore, a.notAfter }

// Name is the issuing certificate's subject in words, for records.
func (a *Authority) Name() string { return a.words }

// covers is nil when a certificate of that validity may be issued: one must not
// outlive any of its issuers, nor begin before them.
func (a *Authority) covers(notBefore, notAfter time.Time) error {
	switch {
	case a.certifier != nil:
		return errors.New("ca: a signing CA was asked for a leaf")
	case notBefore.Before(a.notBefore):
		return fault.New(fault.SignerUnavailable, "the certificate authority isn't valid yet; try again later").
			Because(fmt.Errorf("authority %s issues from %v", a.Name(), a.notBefore))
	case notAfter.After(a.notAfter):
		return fault.New(fault.SignerUnavailable, "the certificate authority's own certificate is about to expire, or has; its operator must renew it").
			Because(fmt.Errorf("authority %s is valid to %v", a.Name(), a.notAfter))
	}
	return nil
}
