package conformance

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// TestTrustHistory has sigstore-go read what Mayfly tells clients of itself and of
// services beside it. It finds each Rekor log by the id that rekor-tiles puts into
// entries, and by the host that rekor-tiles names in checkpoints.
func TestTrustHistory(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	leaf, tsa := stampingChain(t, start)
	m := startServe(t, startDev(t).asIssuer(), func(t *testing.T, dir, config string) string {
		t.Helper()
		write(t, filepath.Join(dir, "tsa.pem"), tsa)
		for name, key := range map[string]crypto.PublicKey{"v1": p256.Public(), "v2": ed, "v2rsa": rsaKey.Public(), "v2ec": p384.Public()} {
			write(t, filepath.Join(dir, name+".pem"), publicPEM(t, key))
		}
		return config + `
trust:
  timestamp_authorities:
    - {url: "https://tsa.example/api/v1/timestamp", chain: tsa.pem, operator: stamps.example}
  transparency_logs:
    - {url: "https://rekor.example", api_version: 1, key_file: v1.pem, end: 2100-01-01T00:00:00Z}
    - {url: "https://log2026.rekor.example:8443", api_version: 2, key_file: v2.pem}
    - {url: "http://10.0.0.7:3003", api_version: 2, key_file: v2rsa.pem, origin: rsa.rekor.example}
    - {url: "https://ec.rekor.example", api_version: 2, key_file: v2ec.pem}
  operators: {rekor.example: example.org}
`
	})
	trust, err := root.NewTrustedRootFromPath(m.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	if n, logs := len(trust.FulcioCertificateAuthorities()), len(trust.CTLogs()); n != 1 || logs != 1 {
		t.Errorf("%d certificate authorities, %d CT logs", n, logs)
	}
	if !slices.ContainsFunc(trust.TimestampingAuthorities(), func(one root.TimestampingAuthority) bool {
		a, ok := one.(*root.SigstoreTimestampingAuthority)
		return ok && a.Leaf.Equal(leaf) && len(a.Intermediates) == 0 && a.Root != nil && a.ValidityPeriodStart.Equal(start) && a.ValidityPeriodEnd.IsZero()
	}) {
		t.Error("no timestamp authority as it is configured")
	}
	if n := len(trust.RekorLogs()); n != 4 {
		t.Errorf("%d Rekor logs", n)
	}
	for origin, key := range map[string]crypto.PublicKey{"log2026.rekor.example": ed, "rsa.rekor.example": rsaKey.Public(), "ec.rekor.example": p384.Public()} {
		_, id, err := note.KeyHash(origin, key)
		if err != nil {
			t.Fatal(err)
		}
		isRekor(t, trust, id, origin, key)
	}
	spki, err := x509.MarshalPKIXPublicKey(p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(spki)
	if l := isRekor(t, trust, id[:], "rekor.example", p256.Public()); l != nil && l.ValidityPeriodEnd.Year() != 2100 {
		t.Errorf("it ends %s", l.ValidityPeriodEnd)
	}
	signing, err := root.NewSigningConfigFromPath(m.download(t, t.TempDir(), "/signing_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[uint32]int{1: 1, 2: 3} {
		logs := 0
		for _, s := range signing.RekorLogURLs() {
			if s.MajorAPIVersion == version && s.ValidAtTime(time.Now()) {
				logs++
			}
		}
		if logs != want {
			t.Errorf("%d Rekor logs of version %d", logs, version)
		}
	}
	if !slices.ContainsFunc(signing.TimestampAuthorityURLs(), func(s root.Service) bool {
		return s.URL == "https://tsa.example/api/v1/timestamp" && s.Operator == "stamps.example" && s.MajorAPIVersion == 1 && s.ValidAtTime(time.Now())
	}) {
		t.Errorf("%+v", signing.TimestampAuthorityURLs())
	}
	if s, err := root.SelectService(signing.RekorLogURLs(), []uint32{1}, time.Now()); err != nil || s.URL != "https://rekor.example" || s.Operator != "example.org" {
		t.Errorf("%+v, %v", s, err)
	}
}

// isRekor wants the log under the id, with the key, at a URL whose host is the origin.
func isRekor(t *testing.T, trust *root.TrustedRoot, id []byte, origin string, key crypto.PublicKey) *root.TransparencyLog {
	t.Helper()
	l := trust.RekorLogs()[hex.EncodeToString(id)]
	if l == nil {
		t.Errorf("no log of %s has the id %x", origin, id)
		return nil
	}
	if u, err := url.Parse(l.BaseURL); err != nil || u.Hostname() != origin || !l.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key) {
		t.Errorf("%s: %s", origin, l.BaseURL)
	}
	return l
}

func publicPEM(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// stampingChain is the certificate of a timestamp authority and the root above it (RFC 3161 §2.3).
func stampingChain(t *testing.T, from time.Time) (leaf *x509.Certificate, chain []byte) {
	t.Helper()
	above := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Stamps"}, CommonName: "root"}, NotBefore: from, NotAfter: from.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	below := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"Stamps"}, CommonName: "stamps"}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{
			Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: []byte("\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x08"), // timeStamping alone
		}},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{below, above} {
		der, err := x509.CreateCertificate(rand.Reader, c, above, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		if c == below {
			if leaf, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
	}
	return leaf, chain
}
