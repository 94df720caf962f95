package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/ctutil"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	zlintlint "github.com/zmap/zlint/v3/lint"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// issuing are the kinds of authority that the profile is tested under.
var issuing = []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072}

// people are principals of each kind of name, with their SAN as OpenSSL prints it.
var people = []struct {
	name, claim, openssl string
	config               func(*identity.IssuerConfig)
	claims               map[string]any
}{
	{"email", "alice@example.com", "email:alice@example.com", func(*identity.IssuerConfig) {}, nil},
	{"uri", "https://example.com/users/1", "URI:https://example.com/users/1", func(c *identity.IssuerConfig) {
		c.Type, c.SubjectDomain = identity.TypeURI, "https://example.com"
	}, map[string]any{"sub": "https://example.com/users/1"}},
	{"username", "alice!example.com", "othername: 1.3.6.1.4.1.57264.1.7::alice!example.com", func(c *identity.IssuerConfig) {
		c.Type, c.SubjectDomain = identity.TypeUsername, "example.com"
	}, nil},
	{"spiffe", "spiffe://example.com/w", "URI:spiffe://example.com/w", func(c *identity.IssuerConfig) {
		c.Type, c.SPIFFETrustDomain = identity.TypeSPIFFE, "example.com"
	}, map[string]any{"sub": "spiffe://example.com/w"}},
}

// person is a principal of people, from a real verifier.
func person(t *testing.T, i int) identity.Principal {
	t.Helper()
	issuer := identitytest.New(t)
	c := issuer.Config()
	people[i].config(&c)
	return issuer.PrincipalAs(t, c, people[i].claims)
}

// TestProfile holds each kind of name under each kind of authority against
// crypto/x509, OpenSSL, certificate-transparency-go and zlint.
func TestProfile(t *testing.T) {
	t.Parallel()
	for _, algorithm := range issuing {
		for i, p := range people {
			t.Run(string(algorithm)+"/"+p.name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, algorithm)
				who := person(t, i)
				cert, err := r.issuer.Issue(t.Context(), who, proven(t, who, kms.ECDSAP256))
				if err != nil {
					t.Fatal(err)
				}
				standardLibraryAgrees(t, cert, who)
				opensslAgrees(t, cert, p.openssl)
				transparencyAgrees(t, r, cert)
				zlintAgrees(t, cert.Leaf)
			})
		}
	}
}

// TestClientKeys: every kind of key that a client may prove is certified as it is.
func TestClientKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	who, _ := alice(t)
	for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048, "Ed25519"} {
		key := proven(t, who, algorithm)
		cert, err := r.issuer.Issue(t.Context(), who, key)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		leaf, err := x509.ParseCertificate(cert.Leaf)
		if err != nil || !bytes.Equal(leaf.RawSubjectPublicKeyInfo, key.SPKI()) {
			t.Errorf("%s: another key is certified, %v", algorithm, err)
		}
		opensslAgrees(t, cert, "email:alice@example.com")
	}
}

func standardLibraryAgrees(t *testing.T, cert *Certificate, who identity.Principal) {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for i, der := range cert.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if i == len(cert.Chain)-1 {
			roots.AddCert(c)
		} else {
			intermediates.AddCert(c)
		}
	}
	leaf.UnhandledCriticalExtensions = nil // an otherName alone leaves the SAN unhandled
	for _, at := range []time.Time{cert.NotBefore, cert.NotAfter} {
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		}); err != nil {
			t.Errorf("at %v: %v", at, err)
		}
	}
	if leaf.Version != 3 || leaf.IsCA || leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}) || leaf.Subject.String() != "" ||
		len(leaf.SubjectKeyId) != 20 || len(leaf.CRLDistributionPoints)+len(leaf.IssuingCertificateURL)+len(leaf.OCSPServer)+len(leaf.Policies) > 0 {
		t.Errorf("profile: %+v", leaf)
	}
	set, err := extension.Parse(leaf.Extensions)
	if err != nil || set != who.Extensions() {
		t.Errorf("the identity's extensions read back as %+v, %v; want %+v", set, err, who.Extensions())
	}
}

// opensslAgrees verifies the chain with OpenSSL and reads its text.
func opensslAgrees(t *testing.T, cert *Certificate, san string) {
	t.Helper()
	dir := t.TempDir()
	all := cert.PEM()
	for name, content := range map[string]string{
		"leaf.pem": all[0], "between.pem": strings.Join(all[1:len(all)-1], ""), "root.pem": all[len(all)-1],
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"verify", "-x509_strict", "-purpose", "any", "-attime", fmt.Sprint(noon.Unix()), "-CAfile", "root.pem"}
	if len(all) > 2 {
		args = append(args, "-untrusted", "between.pem")
	}
	verify := exec.Command("openssl", append(args, "leaf.pem")...)
	verify.Dir = dir
	if out, err := verify.CombinedOutput(); err != nil || string(out) != "leaf.pem: OK\n" {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
	show := exec.Command("openssl", "x509", "-in", "leaf.pem", "-noout", "-text")
	show.Dir = dir
	out, err := show.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl x509: %v\n%s", err, out)
	}
	text := string(out)
	for _, want := range []string{
		"Version: 3 (0x2)", "Subject: \n", "Not Before: Mar  1 12:00:00 2026 GMT", "Not After : Mar  1 12:09:59 2026 GMT",
		"X509v3 Key Usage: critical\n                Digital Signature\n",
		"X509v3 Extended Key Usage: \n                Code Signing\n",
		"X509v3 Subject Alternative Name: critical\n                " + san + "\n",
		"X509v3 Subject Key Identifier: \n", "X509v3 Authority Key Identifier: \n",
		"1.3.6.1.4.1.57264.1.1: \n", "1.3.6.1.4.1.57264.1.8: \n", "1.3.6.1.4.1.57264.1.24: \n",
		"CT Precertificate SCTs: \n", "Version   : v1 (0x0)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl doesn't print %q:\n%s", want, text)
		}
	}
}

// transparencyAgrees: ct-go derives the same bytes from both certificates, and
// verifies the embedded SCT.
func transparencyAgrees(t *testing.T, r *rig, cert *Certificate) {
	t.Helper()
	chain := r.log.entries()[0]
	pre, err := ctx509.ParseCertificate(chain.Precertificate)
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	fromPre, err := ctx509.BuildPrecertTBS(pre.RawTBSCertificate, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ctx509.ParseCertificate(cert.Leaf)
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	fromFinal, err := ctx509.RemoveSCTList(leaf.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fromPre, chain.TBS) || !bytes.Equal(fromFinal, chain.TBS) {
		t.Error("ct-go derives another TBSCertificate from the precertificate or the certificate")
	}
	issuer, err := ctx509.ParseCertificate(cert.Chain[0])
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	if err := pre.CheckSignatureFrom(issuer); err != nil {
		t.Errorf("the precertificate: %v", err)
	}
	raw, err := cert.SCTs[0].Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var sct ct.SignedCertificateTimestamp
	if rest, err := cttls.Unmarshal(raw, &sct); err != nil || len(rest) > 0 {
		t.Fatalf("SCT: %v, %d bytes left", err, len(rest))
	}
	if ok, err := ctutil.ContainsSCT(leaf, &sct); err != nil || !ok {
		t.Errorf("the SCT isn't in the certificate: %v", err)
	}
	if err := ctutil.VerifySCT(&r.log.key.PublicKey, []*ctx509.Certificate{leaf, issuer}, &sct, true); err != nil {
		t.Errorf("ct-go: %v", err)
	}
}

// zlintAgrees runs the lints of RFC 5280 and its companions. The sources about
// web servers (CA/Browser Forum baseline requirements, browsers' programmes)
// judge what this certificate doesn't claim to be.
func zlintAgrees(t *testing.T, der []byte) {
	t.Helper()
	c, err := zx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := zlintlint.GlobalRegistry().Filter(zlintlint.FilterOptions{
		IncludeSources: zlintlint.SourceList{zlintlint.RFC3279, zlintlint.RFC5280, zlintlint.RFC5480, zlintlint.RFC5891, zlintlint.RFC6962, zlintlint.RFC8813, zlintlint.Community},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(registry.Names()); n < 100 {
		t.Fatalf("only %d lints: the filter lost them", n)
	}
	for name, result := range zlint.LintCertificateEx(c, registry).Results {
		if result.Status >= zlintlint.Notice {
			t.Errorf("zlint %s: %v %s", name, result.Status, result.Details)
		}
	}
}

// TestGeneralizedTime: from 2050 on, times are written otherwise.
func TestGeneralizedTime(t *testing.T) {
	t.Parallel()
	a := testAuthority(t, kms.ECDSAP256)
	for year, want := range map[int]byte{2049: 0x17, 2050: 0x18} {
		begin := time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)
		l := sampleLeaf(t)
		l.notBefore, l.notAfter = begin, begin.Add(time.Minute)
		tbs, err := l.tbs(a, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := parsedTBS{authority: a, leaf: l}
		if !r.read(tbs) || !r.notBefore.Equal(begin) {
			t.Errorf("%d: reads back as %v", year, r.notBefore)
		}
		if text := begin.Format("060102150405Z"); bytes.Contains(tbs, append([]byte{want, byte(len(text))}, text...)) != (want == 0x17) {
			t.Errorf("%d: not written with tag %#x", year, want)
		}
	}
}

// TestNamesThatNoCertificateCanCarry: what a certificate can't carry is refused before a
// signature, even where identity let it through.
func TestNamesThatNoCertificateCanCarry(t *testing.T) {
	t.Parallel()
	for _, san := range []identity.SAN{
		{Kind: identity.Email, Value: ""},
		{Kind: identity.Email, Value: "alice"},
		{Kind: identity.Email, Value: "@b"},
		{Kind: identity.Email, Value: "a@b,c@d"},
		{Kind: identity.Email, Value: "a@b\r\nc"},
		{Kind: identity.Email, Value: "a\x00@b"},
		{Kind: identity.Email, Value: "ä@b"},
		{Kind: identity.Email, Value: "\xff@b"},
		{Kind: identity.URI, Value: "no scheme"},
		{Kind: identity.URI, Value: "https://a..b/"},
		{Kind: identity.URI, Value: "https://a./"},
		{Kind: identity.URI, Value: "https://exämple/"},
		{Kind: identity.URI, Value: "https://a b/"},
		{Kind: identity.URI, Value: "%zz://"},
		{Kind: identity.Username, Value: "a\tb"},
		{Kind: identity.Username, Value: "\xc3"},
	} {
		err := checkSAN(san)
		f := fault.From(err)
		if err == nil || f.Reason != fault.ClaimInvalid {
			t.Errorf("%v %q: %v", san.Kind, san.Value, err)
		} else if san.Value != "" && len(san.Value) > 5 && strings.Contains(f.Public, san.Value) {
			t.Errorf("the text repeats the claim: %q", f.Public)
		}
	}
	if err := checkSAN(identity.SAN{Value: "x"}); fault.From(err).Reason != fault.ReasonInternal {
		t.Errorf("no kind: %v", err)
	}
}
