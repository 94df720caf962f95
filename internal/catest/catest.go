// Package catest makes keys and certificates for tests, and collects logs. It imports nothing of ours,
// so that tests of any package can use it.
package catest

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// Key makes a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("making a key: %v", err)
	}
	return key
}

// Authority is the template of a CA certificate with a serial number of its own.
func Authority(organization, name string, notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{organization}, CommonName: name},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func serial() *big.Int { return new(big.Int).SetBytes([]byte(rand.Text()[:16])) }

// Sign makes the certificate of a template and a public key. signer is the key of
// parent, or where parent is nil the certificate's own.
func Sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	parent = cmp.Or(parent, template)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatalf("signing a certificate: %v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("parsing what was signed: %v", err)
	}
	return c
}

// Server makes a TLS server's certificate, good for an hour, for the hosts and
// 127.0.0.1. Clients verify it with Leaf, which signed itself.
func Server(t testing.TB, hosts ...string) tls.Certificate {
	t.Helper()
	key := Key(t)
	template := Authority("Example", "server", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	template.DNSNames, template.IPAddresses = hosts, []net.IP{net.IPv4(127, 0, 0, 1)}
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	c := Sign(t, template, nil, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// PEM encodes certificates one after the other.
func PEM(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// SPKI is a public key in DER.
func SPKI(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatalf("encoding a key: %v", err)
	}
	return der
}

// PublicPEM is a public key in PEM.
func PublicPEM(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: SPKI(t, public)})
}

// TimestampQuery is a TimeStampReq (RFC 3161 §2.4.1) over the SHA-256 of a message, in DER.
func TimestampQuery(message string) []byte {
	const before = "\x30\x34\x02\x01\x01\x30\x2f\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x04\x20" // version 1, id-sha256
	digest := sha256.Sum256([]byte(message))
	return append([]byte(before), digest[:]...)
}
