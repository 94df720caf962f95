// Package ctlogtest is what tests of logs share: a small CA that makes real
// precertificate chains, a log key, a log without storage, and a reader of logs.
package ctlogtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// CA is a root and an intermediate that issues precertificates. It is safe for
// concurrent use.
type CA struct {
	Root                 *x509.Certificate
	Intermediate         *x509.Certificate
	PrecertificateSigner *x509.Certificate // signs precertificates in the intermediate's place (RFC 6962 §3.1)
	key                  *ecdsa.PrivateKey
	signerKey            *ecdsa.PrivateKey
	leaf                 *ecdsa.PrivateKey
	serial               atomic.Int64
}

// NewCA makes a CA whose certificates are valid around the present.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{key: catest.Key(t), signerKey: catest.Key(t), leaf: catest.Key(t)}
	rootKey := catest.Key(t)
	authority := func(name string, pathLen int) *x509.Certificate {
		template := catest.Authority("ctlogtest", name, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
		template.SerialNumber = big.NewInt(ca.serial.Add(1))
		template.MaxPathLen, template.MaxPathLenZero = pathLen, pathLen == 0
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		return template
	}
	root := authority("root", 1)
	ca.Root = catest.Sign(t, root, nil, rootKey.Public(), rootKey)
	ca.Intermediate = catest.Sign(t, authority("intermediate", 0), ca.Root, ca.key.Public(), rootKey)
	signer := authority("precertificates", 0) // below a path length of 0: logs take it even so
	signer.ExtKeyUsage, signer.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{ctlog.OIDPrecertificateSigning}
	ca.PrecertificateSigner = catest.Sign(t, signer, ca.Intermediate, ca.signerKey.Public(), ca.key)
	return ca
}

// Chain issues a precertificate with a serial of its own.
func (ca *CA) Chain(t testing.TB) ctlog.Chain {
	t.Helper()
	return chain(t, [][]byte{ca.issue(t, ca.template(true)), ca.Intermediate.Raw, ca.Root.Raw})
}

// chain is what a log is asked to record, of DER, leaf first.
func chain(t testing.TB, der [][]byte) ctlog.Chain {
	t.Helper()
	c, err := ctlog.NewChain(der[0], der[1:])
	if err != nil {
		t.Fatalf("making a chain: %v", err)
	}
	return c
}

// ChainOfSigner issues a precertificate that the signer signed. final is the
// certificate that the intermediate would sign after it, with SCTs.
func (ca *CA) ChainOfSigner(t testing.TB) (_ ctlog.Chain, final func(scts ...ctlog.SCT) []byte) {
	t.Helper()
	template := ca.template(true)
	precertificate := catest.Sign(t, template, ca.PrecertificateSigner, ca.leaf.Public(), ca.signerKey)
	return chain(t, [][]byte{precertificate.Raw, ca.PrecertificateSigner.Raw, ca.Intermediate.Raw, ca.Root.Raw}), func(scts ...ctlog.SCT) []byte {
		list, err := ctlog.MarshalList(scts)
		if err != nil {
			t.Fatalf("encoding SCTs: %v", err)
		}
		value, err := asn1.Marshal(list)
		if err != nil {
			t.Fatalf("encoding SCTs: %v", err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: ctlog.OIDSCTList, Value: value}}
		return ca.issue(t, template)
	}
}

// ChainOfSignerAfter issues, after edit, a signing certificate for precertificates and a
// precertificate that it signed: DER, leaf first.
func (ca *CA) ChainOfSignerAfter(t testing.TB, edit func(leaf, signer *x509.Certificate)) [][]byte {
	t.Helper()
	leaf, signer := ca.template(true), *ca.PrecertificateSigner
	signer.RawSubject, signer.ExtraExtensions = nil, nil
	edit(leaf, &signer)
	signed := catest.Sign(t, &signer, ca.Intermediate, ca.signerKey.Public(), ca.key)
	precertificate := catest.Sign(t, leaf, signed, ca.leaf.Public(), ca.signerKey)
	return [][]byte{precertificate.Raw, signed.Raw, ca.Intermediate.Raw, ca.Root.Raw}
}

// Certificate issues a certificate without poison: DER, leaf first.
func (ca *CA) Certificate(t testing.TB) [][]byte {
	t.Helper()
	return [][]byte{ca.issue(t, ca.template(false)), ca.Intermediate.Raw, ca.Root.Raw}
}

// Issue issues what the template says, after edit changed it.
func (ca *CA) Issue(t testing.TB, precertificate bool, edit func(*x509.Certificate)) []byte {
	t.Helper()
	template := ca.template(precertificate)
	edit(template)
	return ca.issue(t, template)
}

func (ca *CA) issue(t testing.TB, template *x509.Certificate) []byte {
	t.Helper()
	return catest.Sign(t, template, ca.Intermediate, ca.leaf.Public(), ca.key).Raw
}

func (ca *CA) template(poisoned bool) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial.Add(1)),
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(9 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		URIs: []*url.URL{{Scheme: "https", Host: "example.com", Path: "/workflow"}},
	}
	if poisoned {
		c.ExtraExtensions = []pkix.Extension{{Id: ctlog.OIDPoison, Critical: true, Value: asn1.NullBytes}}
	}
	return c
}

// Signer is a log's key in memory. It counts its signatures.
type Signer struct {
	Key   *ecdsa.PrivateKey
	Calls atomic.Int64
}

// NewSigner makes a P-256 key.
func NewSigner(t testing.TB) *Signer {
	t.Helper()
	return &Signer{Key: catest.Key(t)}
}

// Public is the public key.
func (s *Signer) Public() crypto.PublicKey { return s.Key.Public() }

// Sign makes a DER signature.
func (s *Signer) Sign(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.Calls.Add(1)
	return s.Key.Sign(rand.Reader, digest, opts)
}

// SPKI is the public key in DER.
func (s *Signer) SPKI(t testing.TB) []byte {
	t.Helper()
	return catest.SPKI(t, s.Key.Public())
}

// PEM is the public key in PEM, as operators publish it.
func (s *Signer) PEM(t testing.TB) []byte {
	t.Helper()
	return catest.PublicPEM(t, s.Key.Public())
}

// SCT signs an SCT for the chain with the key.
func (s *Signer) SCT(t testing.TB, chain ctlog.Chain, at time.Time, extensions []byte) ctlog.SCT {
	t.Helper()
	sct, err := s.sign(chain, at, extensions)
	if err != nil {
		t.Fatalf("signing an SCT: %v", err)
	}
	sct.LogID = sha256.Sum256(s.SPKI(t))
	return sct
}

func (s *Signer) sign(chain ctlog.Chain, at time.Time, extensions []byte) (ctlog.SCT, error) {
	sct := ctlog.SCT{Timestamp: uint64(max(at.UnixMilli(), 0)), Extensions: extensions}
	signed, err := chain.SignedBytes(sct.Timestamp, extensions)
	if err != nil {
		return ctlog.SCT{}, err
	}
	digest := sha256.Sum256(signed)
	sct.Signature, err = s.Key.Sign(rand.Reader, digest[:], crypto.SHA256)
	return sct, err
}
