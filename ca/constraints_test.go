package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestNameConstraints: nothing is signed that the chain's name constraints make
// verifiers refuse, and what is signed verifies.
func TestNameConstraints(t *testing.T) {
	t.Parallel()
	email := func(*identity.IssuerConfig) map[string]any { return nil }
	uri := func(c *identity.IssuerConfig) map[string]any {
		c.Type, c.SubjectDomain = identity.TypeURI, "https://example.com"
		return map[string]any{"sub": "https://example.com/builds/1"}
	}
	username := func(c *identity.IssuerConfig) map[string]any {
		c.Type, c.SubjectDomain = identity.TypeUsername, "example.com"
		return map[string]any{"sub": "alice"}
	}
	for name, c := range map[string]struct {
		bound   func(*x509.Certificate)
		who     func(*identity.IssuerConfig) map[string]any
		permits bool
	}{
		"the mail domain":             {func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"example.com"} }, email, true},
		"another mail domain":         {func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"example.org"} }, email, false},
		"an excluded mail domain":     {func(c *x509.Certificate) { c.ExcludedEmailAddresses = []string{"example.com"} }, email, false},
		"another mailbox":             {func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"bob@example.com"} }, email, false},
		"servers alone":               {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }, email, true},
		"the URI's host":              {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.com"} }, uri, true},
		"another host":                {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }, uri, false},
		"an excluded host":            {func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"example.com"} }, uri, false},
		"another host, of a username": {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }, username, true},
	} {
		for _, critical := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				certs, key := constrained(t, func(template *x509.Certificate) {
					template.PermittedDNSDomainsCritical = critical
					c.bound(template)
				})
				r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
					o.Authorities = authority.Single(newAuthority(t, certs, key, authority.Config{PrecertificateSigner: authority.SignerOff}))
				})
				issuer := identitytest.New(t)
				config := issuer.Config()
				claims := c.who(&config)
				who := issuer.PrincipalAs(t, config, claims)
				got, err := r.issuer.Issue(t.Context(), who, proven(t, who, kms.ECDSAP256))
				if !c.permits {
					if f := fault.From(err); f.Reason != fault.ClaimInvalid || f.Metadata["claim"] != who.SAN().Kind.String() {
						t.Errorf("a name outside of the constraints: %v", err)
					}
					if calls := key.calls.Load(); calls != 0 || len(r.log.entries()) != 0 || len(r.audit.events) != 0 {
						t.Errorf("%d signatures, %d entries, %d records", calls, len(r.log.entries()), len(r.audit.events))
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				verifyLeaf(t, got, certs)
			})
		}
	}
}

// constrained is a root, and an intermediate below it that bound changes.
func constrained(t testing.TB, bound func(*x509.Certificate)) ([]*x509.Certificate, *watchedSigner) {
	t.Helper()
	rootKey, key := catest.Key(t), catest.Key(t)
	began, ends := noon.AddDate(0, -1, 0).Truncate(time.Second), noon.AddDate(1, 0, 0).Truncate(time.Second)
	root := catest.Sign(t, catest.Authority("Example", "root", began, ends), nil, rootKey.Public(), rootKey)
	template := catest.Authority("Example", "issuing", began, ends)
	template.MaxPathLenZero, template.ExtKeyUsage = true, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	template.SubjectKeyId = []byte{1, 2, 3, 4}
	bound(template)
	return []*x509.Certificate{catest.Sign(t, template, root, key.Public(), rootKey), root}, &watchedSigner{Signer: kms.InMemory(key)}
}

// verifyLeaf verifies what was issued, as a client would that reads usernames itself.
func verifyLeaf(t *testing.T, got *Certificate, certs []*x509.Certificate) {
	t.Helper()
	leaf, err := x509.ParseCertificate(got.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, asn1.ObjectIdentifier{2, 5, 29, 17}.Equal)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certs[1])
	intermediates.AddCert(certs[0])
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}); err != nil {
		t.Errorf("a verifier refuses what was issued: %v", err)
	}
}

// TestProbeKeepsToNameConstraints: what the logs are shown of a precertificate signer is
// something that the chain lets it certify; a log that looks would refuse the signer otherwise.
func TestProbeKeepsToNameConstraints(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bound func(*x509.Certificate)
		want  string
	}{
		"servers alone": {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }, "https://nobody.invalid/mayfly-probe"},
		"a host":        {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }, "mayfly-probe@nobody.invalid"},
		"a host and mail": {func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedEmailAddresses = []string{"example.org"}, []string{"example.org"}
		}, "mayfly-probe!nobody.invalid"},
		"no such domain": {func(c *x509.Certificate) {
			c.ExcludedURIDomains, c.ExcludedEmailAddresses = []string{"nobody.invalid"}, []string{"nobody.invalid"}
		}, "mayfly-probe!nobody.invalid"},
	} {
		certs, key := constrained(t, c.bound)
		r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
			o.Authorities = authority.Single(newAuthority(t, certs, key, authority.Config{PrecertificateSigner: authority.SignerOn}))
		})
		if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if last := r.audit.events[len(r.audit.events)-1]; last.SAN != c.want {
			t.Errorf("%s: the probe names %q, want %q", name, last.SAN, c.want)
		}
		shown, err := x509.ParseCertificate(assemble(r.log.entries()[0].TBS, r.issuer.Authorities().Active.SignatureAlgorithm, nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.issuer.Authorities().Active.Permits(shown); err != nil {
			t.Errorf("%s: the constraints exclude what the log is shown: %v", name, err)
		}
	}
}
