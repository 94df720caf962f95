package authority

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
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// A precertificate signing certificate's life. Its key is in memory, so each start
// makes another; days bound what a stolen one is good for, and leave two of them
// to a KMS or a log that is down when it is to be renewed.
const (
	signerLifetime = 72 * time.Hour
	signerRenewal  = 24 * time.Hour
	signerBackdate = 5 * time.Minute // a log's clock may be behind ours
)

// signerRSABits is for an authority whose key is RSA.
const signerRSABits = 2048

// PrecertificateSigner is a precertificate signing certificate (RFC 6962 §3.1) and
// its key, which is in memory: what it signs costs no signature of the authority's
// key. Callers must not write to it.
type PrecertificateSigner struct {
	Certificate *x509.Certificate
	Chain       [][]byte // DER: its certificate, the issuing one, …, the root
	KeyID       []byte   // the authority key identifier that names its key, the whole extension in DER

	key   crypto.Signer
	hash  crypto.Hash
	renew time.Time // when another is to take its place
}

// SignTBS signs a precertificate's TBSCertificate and gives the signature.
func (s *PrecertificateSigner) SignTBS(tbs []byte) ([]byte, error) {
	h := s.hash.New()
	_, _ = h.Write(tbs) // a hash never fails
	sig, err := s.key.Sign(rand.Reader, h.Sum(nil), s.hash)
	if err != nil {
		return nil, fmt.Errorf("ca: signing the precertificate: %w", err)
	}
	return sig, nil
}

// covers reports whether what s signs is within s's validity.
func (s *PrecertificateSigner) covers(notBefore, notAfter time.Time) bool {
	return !notBefore.Before(s.Certificate.NotBefore) && !notAfter.After(s.Certificate.NotAfter)
}

// newSignerKey makes a key that signs with the authority's algorithm: a
// TBSCertificate names it, and must fit the precertificate's signature as well as
// the final one's (RFC 6962 §3.2). ECDSA's names no curve, so P-256 does for all.
func (a *Authority) newSignerKey() (crypto.Signer, error) {
	if _, ok := a.Public().(*rsa.PublicKey); ok {
		return rsa.GenerateKey(rand.Reader, signerRSABits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// signerTemplate is what the certificate of a precertificate signer says. Its life
// ends with the authority's at the latest.
func (a *Authority) signerTemplate(serial *big.Int, keyID []byte, now time.Time) *x509.Certificate {
	now = now.UTC().Truncate(time.Second)
	notBefore, notAfter := now.Add(-signerBackdate), now.Add(signerLifetime)
	if notBefore.Before(a.notBefore) {
		notBefore = a.notBefore
	}
	if notAfter.After(a.notAfter) {
		notAfter = a.notAfter
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: a.Certificate.Subject.Organization, CommonName: "Precertificate signing"},
		NotBefore:    notBefore, NotAfter: notAfter,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		KeyUsage:           x509.KeyUsageCertSign,
		SubjectKeyId:       keyID,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{ctlog.OIDPrecertificateSigning}, // that one alone: it signs nothing that anybody else accepts
	}
}

// newSigner makes a key and has a certify it with one signature, on record before
// and after. The error is classified where a's key can't be used.
func (f *InForce) newSigner(ctx context.Context, a *Authority, now time.Time) (*PrecertificateSigner, error) {
	key, err := a.newSignerKey()
	if err != nil {
		return nil, fmt.Errorf("ca: making a precertificate signing key: %w", err)
	}
	serial, err := cacert.NewSerial(rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing key: %w", err)
	}
	keyID, err := cacert.KeyID(spki)
	if err != nil {
		return nil, err
	}
	template := a.signerTemplate(serial, keyID, now)
	intent := a.Intent(audit.PurposePrecertificateSigner, spki)
	intent.Serial, intent.NotBefore, intent.NotAfter = hex.EncodeToString(serial.Bytes()), template.NotBefore, template.NotAfter
	if err := f.o.Trail.Record(ctx, intent); err != nil {
		return nil, err
	}
	s, err := a.certifySigner(ctx, template, key, now)
	if err != nil {
		f.o.Trail.Failed(ctx, intent, err)
		return nil, err
	}
	return s, f.o.Trail.Record(ctx, issued(intent, s.Certificate))
}

// certifySigner signs the certificate of a precertificate signer, and reads it back.
func (a *Authority) certifySigner(ctx context.Context, template *x509.Certificate, key crypto.Signer, now time.Time) (*PrecertificateSigner, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, key.Public(), cacert.Using(ctx, a))
	if err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing certificate: %w", err)
	}
	s := &PrecertificateSigner{key: key, hash: a.hash, renew: never, Chain: append([][]byte{der}, a.Chain...)}
	if s.Certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("ca: the precertificate signing certificate: %w", err)
	}
	if !ctlog.SignsPrecertificates(s.Certificate) || !bytes.Equal(s.Certificate.RawIssuer, a.Certificate.RawSubject) {
		return nil, errors.New("ca: the precertificate signing certificate doesn't say what it should")
	}
	if s.Certificate.NotAfter.Before(a.notAfter) {
		s.renew = now.Add(signerRenewal)
	}
	s.KeyID, err = authorityKeyID(s.Certificate.SubjectKeyId)
	return s, err
}
