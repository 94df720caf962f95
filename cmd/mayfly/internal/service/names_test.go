package service

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Names in tokens and certificates.

func TestNamesInCertificates(t *testing.T) {
	t.Parallel()
	people := startIssuer(t)
	r := newRig(t, func(_ *rig, c *config.Config) {
		u := people.Config()
		u.Type, u.SubjectDomain = identity.TypeUsername, "people.example.com"
		c.Issuers = append(c.Issuers, u)
	})
	for _, bad := range []string{
		"a\rb", "a\nb", "a\x00b", "a\tb", "a,b", "a\u202eb", " a", "a ", "é", strings.Repeat("a", 9000),
	} {
		r.refusesToken(t, fmt.Sprintf("email %.12q", bad), r.signed(t, map[string]any{"email": bad + "@example.com"}), fault.ClaimInvalid)
		o := r.signingRequest(t, people.Token(t, map[string]any{"sub": bad, "email": nil, "canary": canary}))
		o.proof = prove(t, r.key, bad)
		r.refuses(t, fmt.Sprintf("sub %.12q", bad), o, fault.ClaimInvalid)
	}
	for _, bad := range []string{"a@b,c@d", "a@b@c", "@example.com", "a@", "a"} {
		r.refusesToken(t, "email "+bad, r.signed(t, map[string]any{"email": bad}), fault.ClaimInvalid)
	}
	// What is issued has the exact bytes, for Go and for OpenSSL.
	for _, good := range []string{"a+tag@example.com", "o'brien@example.com", "A.B-c_d@EXAMPLE.com"} {
		o := r.signingRequest(t, r.signed(t, map[string]any{"email": good}))
		o.proof = prove(t, r.key, good)
		for _, leaf := range r.issues(t, good, o) {
			if len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != good {
				t.Errorf("Go reads %q; want %q", leaf.EmailAddresses, good)
			}
			if text := opensslName(t, leaf); text != "email:"+good {
				t.Errorf("OpenSSL reads %q; want %q", text, good)
			}
		}
	}
}

// opensslName is the subject alternative name as OpenSSL writes it.
func opensslName(t *testing.T, leaf *x509.Certificate) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", "x509", "-noout", "-ext", "subjectAltName")
	cmd.Stdin = strings.NewReader(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	_, name, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(name)
}

func TestSubjectsInCertificates(t *testing.T) {
	t.Parallel()
	services := startIssuer(t)
	r := newRig(t, func(_ *rig, c *config.Config) {
		u := services.Config()
		u.Type, u.SubjectDomain = identity.TypeURI, "https://allowed.example"
		c.Issuers = append(c.Issuers, u)
	})
	ask := func(sub string) signingRequest {
		o := r.signingRequest(t, services.Token(t, map[string]any{"sub": sub, "email": nil, "canary": canary}))
		o.proof = prove(t, r.key, sub)
		return o
	}
	for _, bad := range []string{
		"https://allowed.example@evil/", "https://allowed.example.evil/x", "HTTPS://allowed.example/x", "https://allowed.example:443/x",
		"https://allowed.example/%2e%2e/x", "https://allowed.example/../x", "http://allowed.example/x", "https://ALLOWED.example/x", "allowed.example/x",
	} {
		r.refuses(t, bad, ask(bad), fault.SubjectDomain, fault.ClaimInvalid)
	}
	for _, leaf := range r.issues(t, "allowed", ask("https://allowed.example/service")) {
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "https://allowed.example/service" {
			t.Errorf("certified %v", leaf.URIs)
		}
	}
}
