package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// sealedAuthority makes a sealed issuing key and certifies it by a root.
func sealedAuthority(t *testing.T, s *kmstest.Sealing, a kms.Algorithm) (AuthorityConfig, kms.Options) {
	t.Helper()
	c := AuthorityConfig{
		Mode: ModeSealed, Key: setting.KeyRef(s.Ref), Access: s.Options.Access,
		SealedKey: setting.Path(filepath.Join(t.TempDir(), "issuing.json")),
	}
	o := s.Options
	o.SealedKey = c.SealedKey
	if _, err := kms.Generate(t.Context(), s.Ref, a, o); err != nil {
		t.Fatal(err)
	}
	key, err := kms.Open(t.Context(), s.Ref, o)
	if err != nil {
		t.Fatal(err)
	}
	l := newLineage(t)
	certificate := func(c, parent *x509.Certificate, of any) (*x509.Certificate, []byte) {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, of, l.rootKey)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return made, []byte(chain.Encode(der))
	}
	root, rootPEM := certificate(l.root, l.root, l.rootKey.Public())
	_, issuingPEM := certificate(l.intermediate, root, key.Public())
	c.Chain = setting.Path(filepath.Join(t.TempDir(), "chain.pem"))
	if err := os.WriteFile(string(c.Chain), append(issuingPEM, rootPEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	return c, s.Options
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
				c, o := sealedAuthority(t, s, algorithm)
				before := s.Count(s.Unseal)
				a, err := LoadAuthority(t.Context(), c, noon, o)
				if err != nil {
					t.Fatal(err)
				}
				if got := s.Count(s.Unseal) - before; got != 1 {
					t.Errorf("the KMS was asked %d times to decrypt", got)
				}
				r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = One(a) })
				s.Break(func(string) kmstest.Trouble { return kmstest.Trouble{Drop: true} })
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

// TestSealedRefusals: what the operator reads when a sealed authority can't start.
func TestSealedRefusals(t *testing.T) {
	t.Parallel()
	s := kmstest.NewSealingVault(t)
	good, o := sealedAuthority(t, s, kms.ECDSAP256)
	another, _ := sealedAuthority(t, s, kms.ECDSAP256)
	for name, tt := range map[string]struct {
		change func(*AuthorityConfig)
		want   string
	}{
		"no file named":          {func(c *AuthorityConfig) { c.SealedKey = "" }, "ca.authority.sealed_key: required with `mode: sealed`: the file that `mayfly kms keygen KEY --sealed-key FILE` writes"},
		"no mode":                {func(c *AuthorityConfig) { c.Mode = "" }, "ca.authority.sealed_key: belongs to `mode: sealed`: set that, or remove it"},
		"another mode":           {func(c *AuthorityConfig) { c.Mode = "magic" }, `ca.authority.mode: "magic" is none of direct, sealed, ephemeral`},
		"a key that can't seal":  {func(c *AuthorityConfig) { c.Key, c.Access = "file:a.pem", kms.Access{} }, "ca.authority.key: key file:a.pem: a file can't seal: name a key in a KMS"},
		"another KMS key":        {func(c *AuthorityConfig) { c.Key = setting.KeyRef(s.Other) }, "was sealed by the key " + s.Pinned + ", not by " + s.Other + ": name that key, or another file"},
		"another's certificate":  {func(c *AuthorityConfig) { c.Chain = another.Chain }, "ca.authority.key: isn't the key of the first certificate"},
		"no such file":           {func(c *AuthorityConfig) { c.SealedKey += "x" }, "no such file"},
		"the chain as the key":   {func(c *AuthorityConfig) { c.SealedKey = c.Chain }, "isn't a sealed key: name a file that `mayfly kms keygen --sealed-key` wrote"},
		"a KMS that isn't there": {func(c *AuthorityConfig) { c.Endpoint = "http://127.0.0.1:1" }, "127.0.0.1:1: connect: "},
	} {
		c := good
		tt.change(&c)
		_, err := LoadAuthority(t.Context(), c, noon, o)
		var faults *setting.FaultError
		if !errors.As(err, &faults) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

// TestModesHaveWords: a mode is written as the documentation writes it.
func TestModesHaveWords(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "docs", "keys.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []Mode{ModeDirect, ModeSealed, ModeEphemeral} {
		if !bytes.Contains(text, []byte("`"+string(m)+"`")) {
			t.Errorf("docs/keys.md says nothing of %s", m)
		}
	}
}
