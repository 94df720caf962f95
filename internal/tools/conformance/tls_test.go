package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// certified is the TLS of this run: a certificate for 127.0.0.1, and its authority.
type certified struct {
	authority, certificate, key []byte // PEM
	caller                      *http.Client
}

var loopback = sync.OnceValues(func() (certified, error) {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certified{}, err
	}
	now := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Mayfly's conformance"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return certified{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certified{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), authorityKey)
	if err != nil {
		return certified{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return certified{}, err
	}
	c := certified{
		authority:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authorityDER}),
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.authority)
	c.caller = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	return c, nil
})

// caller trusts the TLS of this run.
func caller(t *testing.T) *http.Client {
	t.Helper()
	c, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	return c.caller
}

// withTLSLine is how a configuration shows that it has TLS.
const withTLSLine = "\n  tls:\n"

// withTLS has a CA speak TLS on all of its ports.
func withTLS(t *testing.T, dir, config string) string {
	c, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, certificate, c.certificate)
	write(t, key, c.key)
	_, rest, _ := strings.Cut(config, "\n  http_address: ")
	address, _, found := strings.Cut(rest, "\n")
	if !found {
		t.Fatalf("the configuration has another form: %s", config)
	}
	config = strings.ReplaceAll(config, "http://"+address, "https://"+address)
	return strings.Replace(config, "\nserver:\n", "\nserver:"+withTLSLine+
		"    cert_file: "+certificate+"\n    key_file: "+key+"\n", 1)
}

// trustingTLS is the environment of programs that call this run's TLS: Go's and
// Rust's, Python's, Node's and Java's.
func trustingTLS(t *testing.T) []string {
	t.Helper()
	c, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, store := filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.p12")
	write(t, file, c.authority)
	command(t, nil, "keytool", "-importcert", "-noprompt", "-alias", "mayfly", "-file", file,
		"-keystore", store, "-storepass", "changeit")
	return []string{
		"SSL_CERT_FILE=" + file, "REQUESTS_CA_BUNDLE=" + file, "NODE_EXTRA_CA_CERTS=" + file,
		"JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=" + store + " -Djavax.net.ssl.trustStorePassword=changeit",
	}
}
