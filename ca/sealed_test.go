package ca

import (
	"bytes"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// sealedAuthority makes a sealed issuing key and certifies it by a root.
func sealedAuthority(t *testing.T, s *kmstest.Sealing, a kms.Algorithm) authority.Config {
	t.Helper()
	o := s.Options
	o.SealedKey = setting.Path(filepath.Join(t.TempDir(), "issuing.json"))
	if _, err := keystore.Generate(t.Context(), s.Ref, a, o); err != nil {
		t.Fatal(err)
	}
	key, err := keystore.Open(t.Context(), s.Ref, o)
	if err != nil {
		t.Fatal(err)
	}
	return authority.Config{
		Mode: authority.ModeSealed, Key: setting.KeyRef(s.Ref), Access: s.Options.Access, SealedKey: o.SealedKey,
		Chain: writeChain(t, chainFor(t, key.Public(), cacert.Profile{})),
	}
}

// TestSealedIssues: a whole issuance under a sealed key of every vendor, verified
// by crypto/x509 and openssl, with the KMS asked at the start alone.
func TestSealedIssues(t *testing.T) {
	t.Parallel()
	for vendor, make := range kmstest.Sealings {
		for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072} {
			t.Run(vendor+" "+string(algorithm), func(t *testing.T) {
				t.Parallel()
				s := make(t)
				c := sealedAuthority(t, s, algorithm)
				before := s.Count(s.Unseal)
				a, err := authority.Load(t.Context(), c, authority.LoadOptions{Now: noon, KMS: s.Options})
				if err != nil {
					t.Fatal(err)
				}
				if got := s.Count(s.Unseal) - before; got != 1 {
					t.Errorf("the KMS was asked %d times to decrypt", got)
				}
				r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = authority.Single(a) })
				s.Always(kmstest.Fault{Drop: true})
				before = s.Count("")
				who, key := alice(t)
				const many = 20
				var cert *Certificate
				for range many {
					if cert, err = r.issuer.Issue(t.Context(), who, key); err != nil {
						t.Fatal(err)
					}
				}
				if err := r.issuer.Ready(t.Context()); err != nil {
					t.Errorf("not ready while the KMS is down, which isn't needed: %v", err)
				}
				if got := s.Count("") - before; got != 0 {
					t.Errorf("%d calls to the KMS for %d certificates", got, many)
				}
				verifies(t, cert)
			})
		}
	}
}

// verifies holds a certificate with an SCT to crypto/x509's and openssl's opinion.
func verifies(t *testing.T, cert *Certificate) {
	t.Helper()
	if len(cert.SCTs) != 1 {
		t.Errorf("%d SCTs", len(cert.SCTs))
	}
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
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	if err != nil || len(chains[0]) != len(cert.Chain)+1 {
		t.Errorf("%v, %d chains", err, len(chains))
	}
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("make test installs it: %v", err)
	}
	dir, all := t.TempDir(), cert.PEM()
	names := []string{filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "untrusted.pem"), filepath.Join(dir, "root.pem")}
	for i, content := range []string{all[0], strings.Join(all[1:len(all)-1], ""), all[len(all)-1]} {
		if err := os.WriteFile(names[i], []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-no_check_time",
		"-trusted", names[2], "-untrusted", names[1], names[0])
	if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("OK")) {
		t.Errorf("openssl: %v: %s", err, out)
	}
}
