package chain

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Replica is a chain once more, with other keys, which are at hand, and all else
// the same: what a client makes of a certificate below it, it would make of the
// same one below the chain. So a certificate is tried before the chain's own key
// signs anything.
type Replica struct {
	certs []*x509.Certificate // issuing one first
	key   crypto.Signer       // of the issuing one
}

// NewReplica copies a checked chain. With a below of 1, a short-lived issuing CA comes first.
func NewReplica(chain []*x509.Certificate, below int) (*Replica, error) {
	r := &Replica{}
	all := slices.Clone(chain)
	for range below {
		issuing := *chain[0]
		issuing.Extensions = nil
		all = slices.Insert(all, 0, &issuing)
	}
	for i, c := range slices.Backward(all) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // forgotten with the replica
		if err != nil {
			return nil, fmt.Errorf("chain: making a key for a trial: %w", err)
		}
		t := copyOf(c)
		if i < below {
			t.RawSubject, t.Subject = nil, pkix.Name{CommonName: fmt.Sprintf("issuing CA %d", i)}
			t.IsCA, t.BasicConstraintsValid, t.MaxPathLen, t.MaxPathLenZero = true, true, i, i == 0
			t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageCertSign, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}
		made, err := r.certify(t, key.Public(), key)
		if err != nil {
			return nil, err
		}
		r.certs, r.key = slices.Insert(r.certs, 0, made), key
	}
	return r, nil
}

// copyOf is what a certificate says, without its keys and its serial number.
func copyOf(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: c.RawSubject, NotBefore: c.NotBefore, NotAfter: c.NotAfter, ExtraExtensions: c.Extensions,
	}
}

// certify signs a certificate below the replica; the first signs itself with own.
func (r *Replica) certify(t *x509.Certificate, public crypto.PublicKey, own crypto.Signer) (*x509.Certificate, error) {
	parent, key := t, own
	if len(r.certs) > 0 {
		parent, key = r.certs[0], r.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("chain: a trial: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("chain: a trial can't be read back: %w", err)
	}
	return c, nil
}

// Sample is nil when clients take a certificate of the lifetime from now, whatever
// it names.
func (r *Replica) Sample(now time.Time, lifetime time.Duration) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("chain: making a key for a trial: %w", err)
	}
	return r.verify(&x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, key.Public(), now)
}

// Takes is nil when clients take the leaf, whose signature isn't looked at, when it begins.
func (r *Replica) Takes(leaf *x509.Certificate) error {
	return r.verify(copyOf(leaf), leaf.PublicKey, leaf.NotBefore)
}

// oidSubjectAltName is the type of the names of a leaf (RFC 5280 §4.2.1.6).
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func (r *Replica) verify(t *x509.Certificate, public crypto.PublicKey, now time.Time) error {
	leaf, err := r.certify(t, public, nil)
	if err != nil {
		return err
	}
	// Sigstore's clients read a username, an otherName that crypto/x509 doesn't know, themselves.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(r.certs[len(r.certs)-1])
	for _, c := range r.certs {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	return err
}
