package inspect

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"flag"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", name, got, want)
	}
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fixed is a certificate with the same bytes each time: Ed25519 is deterministic.
func fixed(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	arc := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, n} }
	text := func(s string) []byte {
		b, err := asn1.MarshalWithParams(s, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x1234abcd), NotBefore: start, NotAfter: start.Add(10*time.Minute - time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{
			{Id: arc(1), Value: []byte("https://issuer.example.com")},
			{Id: arc(2), Value: []byte("push")},
			{Id: arc(8), Value: text("https://issuer.example.com")},
			{Id: arc(12), Value: text("https://github.com/o/r")},
			{Id: arc(24), Value: text("repo:o/r:ref:refs/heads/main")},
		},
		URIs: []*url.URL{{Scheme: "https", Host: "github.com", Path: "/o/r/.github/workflows/w.yml@refs/heads/main"}},
	}
	if change != nil {
		change(template)
	}
	parent := &x509.Certificate{Subject: pkix.Name{Organization: []string{"Example"}, CommonName: "issuing"}}
	der, err := x509.CreateCertificate(nil, template, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func show(t testing.TB, d Description, now time.Time) string {
	t.Helper()
	var b strings.Builder
	d.Print(&b, now)
	return b.String()
}

func TestCertificateInWords(t *testing.T) {
	t.Parallel()
	d := Describe([]*x509.Certificate{fixed(t, nil)}, nil)
	golden(t, "ci.txt", show(t, d, start.Add(4*time.Minute)))
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ci.json", string(text)+"\n")
}

// Whatever a certificate holds, what is printed can't steer a terminal, and
// what can't be read hides nothing else.
func TestHostileCertificate(t *testing.T) {
	t.Parallel()
	arc := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, n} }
	hostile := fixed(t, func(c *x509.Certificate) {
		c.URIs = nil
		san, err := asn1.Marshal([]asn1.RawValue{
			{Class: 2, Tag: 1, Bytes: []byte("alice@example.com\x1b[2K\rroot@example.com")},
			{Class: 2, Tag: 2, Bytes: []byte("host.example.com")},
			{Class: 2, Tag: 7, Bytes: net.IPv4(192, 0, 2, 1).To4()},
			{Class: 2, Tag: 7, Bytes: []byte{192, 0, 2, 1}},
			{Class: 2, Tag: 0, IsCompound: true, Bytes: []byte{0x06, 0x01, 0x2a}},
			{Class: 2, Tag: 8, Bytes: []byte{0x2a}},
			{Class: 2, Tag: 30, Bytes: []byte{1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Subject.CommonName = "\u202Egnp.exe\n\x07"
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}}
		c.ExtraExtensions = []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san},
			{Id: arc(1), Value: []byte("https://issuer\x1b]0;pwned\x07")},
			{Id: arc(5), Value: []byte("bad \xff utf-8")},
			{Id: arc(8), Value: []byte("not DER")},
			{Id: arc(9), Critical: true, Value: []byte{0x0c, 0x01, 'x'}},
			{Id: arc(22), Value: []byte{0x0c, 0x00}},
			{Id: arc(99), Value: []byte("x")},
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: []byte("no list")},
		}
	})
	text := show(t, Describe([]*x509.Certificate{hostile, fixed(t, nil)}, nil), start.Add(-time.Hour))
	if strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Error("the text holds control characters")
	}
	golden(t, "hostile.txt", text)
}

func TestVerifiedCertificate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		knobs clienttest.Knobs
		trust bool
		want  []string
	}{
		"verified":       {clienttest.Knobs{}, true, []string{"  verified\n    log id", "log         https://log.example.com", "leaf index  258", "verified for code signing"}},
		"no trust":       {clienttest.Knobs{}, false, []string{"not verified: " + NoTrust, "leaf index  258"}},
		"wrong SCT":      {clienttest.Knobs{BadSCT: true}, true, []string{"not verified: ctlog: the SCT's signature", "verified for code signing"}},
		"unknown log":    {clienttest.Knobs{UnknownLog: true}, true, []string{"not verified: the trusted root lists no log with this id"}},
		"no codeSigning": {clienttest.Knobs{Edit: serverAuth}, true, []string{"not verified: the certificate is not for code signing", "not verified: the certificate's chain is not verified"}},
		"username":       {clienttest.Knobs{Username: "alice!example.com"}, true, []string{"alice!example.com (username)", "verified for code signing"}},
		"no SCT":         {clienttest.Knobs{NoSCT: true}, true, []string{"timestamps\n  none"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := clienttest.New(t)
			ca.Set(c.knobs)
			certs := issue(t, ca)
			var trust *client.Trust
			if c.trust {
				var err error
				if trust, err = client.ParseTrust(ca.TrustedRoot()); err != nil {
					t.Fatal(err)
				}
			}
			text := show(t, Describe(certs, trust), ca.Start)
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		})
	}
}

func issue(t *testing.T, ca *clienttest.CA) []*x509.Certificate {
	t.Helper()
	key, err := client.GenerateKey(client.DefaultKeyType)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.CSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(clienttest.Token(t, map[string]any{"iss": "https://i", "sub": "s", "email": "a@b.c"}), nil, nil, csr)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := Parse([]byte("text before\n" + strings.Join(chain, "between\n")))
	if err != nil || len(certs) != 3 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	return certs
}

func TestParse(t *testing.T) {
	t.Parallel()
	der := fixed(t, nil).Raw
	pem := string(cachain.PEM([]*x509.Certificate{fixed(t, nil)}))
	key := "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		in   string
		want int
	}{
		"PEM": {pem, 1}, "DER": {string(der), 1}, "two DER": {string(der) + string(der), 2},
		"a key before it": {key + pem, 1}, "only a key": {key, 0}, "empty": {"", 0}, "text": {"hello", 0},
		"cut DER": {string(der[:100]), 0}, "broken PEM": {pem[:200], 0}, "too many": {strings.Repeat(pem, maxCertificates+1), 0},
		"too many DER":       {strings.Repeat(string(der), maxCertificates+1), 0},
		"broken certificate": {"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", 0},
	} {
		certs, err := Parse([]byte(c.in))
		if len(certs) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
}

func TestValidity(t *testing.T) {
	t.Parallel()
	end := start.Add(10*time.Minute - time.Second)
	const ends = "2026-01-02 03:04:05 UTC to 2026-01-02 03:14:04 UTC (10 minutes), "
	for want, now := range map[string]time.Time{
		"starts 1 second from now":     start.Add(-time.Second),
		"starts 3 hours from now":      start.Add(-3 * time.Hour),
		"ends 10 minutes from now":     start,
		"ends 1 minute from now":       start.Add(9 * time.Minute),
		"ends 1 second from now":       end,
		"ended now":                    end.Add(time.Second),
		"ended 3 days ago":             end.Add(73*time.Hour + time.Second),
		"ended 5 years ago":            end.AddDate(5, 0, 2),
		"ended a long while ago":       end.AddDate(900, 0, 0),
		"starts a long while from now": start.AddDate(-900, 0, 0),
		"ended 1 hour ago":             end.Add(100*time.Minute + time.Second),
	} {
		if got := Validity(start, end, now); got != ends+want {
			t.Errorf("got %q, want %q", got, ends+want)
		}
	}
	if got := Validity(end, start, end); !strings.Contains(got, "(a negative time)") {
		t.Errorf("backwards: %q", got)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(fixed(f, nil).Raw)
	f.Add(cachain.PEM([]*x509.Certificate{fixed(f, nil)}))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := Parse(data)
		if err != nil {
			return
		}
		d := Describe(certs, nil)
		if d.Verified {
			t.Error("verified without a trusted root")
		}
		if text := strings.ReplaceAll(show(t, d, start), "\n", ""); strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("control characters in %q", text)
		}
		if _, err := json.Marshal(d); err != nil {
			t.Error(err)
		}
	})
}

func serverAuth(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
