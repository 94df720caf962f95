package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// sealedAuthority makes a sealed issuing key and certifies it by a root.
func sealedAuthority(t *testing.T, s *kmstest.Sealing, a kms.Algorithm) (Config, kms.Options) {
	t.Helper()
	c := Config{
		Mode: ModeSealed, Key: setting.KeyRef(s.Ref), Access: s.Options.Access,
		SealedKey: setting.Path(filepath.Join(t.TempDir(), "issuing.json")),
	}
	o := s.Options
	o.SealedKey = c.SealedKey
	if _, err := keystore.Generate(t.Context(), s.Ref, a, o); err != nil {
		t.Fatal(err)
	}
	key, err := keystore.Open(t.Context(), s.Ref, o)
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

// TestSealedRefusals: what the operator reads when a sealed authority can't start.
func TestSealedRefusals(t *testing.T) {
	t.Parallel()
	s := kmstest.Sealings["vault"](t)
	good, o := sealedAuthority(t, s, kms.ECDSAP256)
	another, _ := sealedAuthority(t, s, kms.ECDSAP256)
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no file named":          {func(c *Config) { c.SealedKey = "" }, "ca.authority.sealed_key: required with `mode: sealed`: the file that `mayfly kms keygen KEY --sealed-key FILE` writes"},
		"no mode":                {func(c *Config) { c.Mode = "" }, "ca.authority.sealed_key: belongs to `mode: sealed`: set that, or remove it"},
		"another mode":           {func(c *Config) { c.Mode = "magic" }, `ca.authority.mode: "magic" is none of direct, sealed, ephemeral`},
		"a key that can't seal":  {func(c *Config) { c.Key, c.Access = "file:a.pem", kms.Access{} }, "ca.authority.key: key file:a.pem: a file can't seal: name a key in a KMS"},
		"another KMS key":        {func(c *Config) { c.Key = setting.KeyRef(s.Other) }, "was sealed by the key " + s.Pinned + ", not by " + s.Other + ": name that key, or another file"},
		"another's certificate":  {func(c *Config) { c.Chain = another.Chain }, "ca.authority.key: isn't the key of the first certificate"},
		"no such file":           {func(c *Config) { c.SealedKey += "x" }, "no such file"},
		"the chain as the key":   {func(c *Config) { c.SealedKey = c.Chain }, "isn't a sealed key: name a file that `mayfly kms keygen --sealed-key` wrote"},
		"a KMS that isn't there": {func(c *Config) { c.Endpoint = "http://127.0.0.1:1" }, "127.0.0.1:1: connect: "},
	} {
		c := good
		tt.change(&c)
		_, err := Load(t.Context(), c, LoadOptions{Now: noon, KMS: o})
		var faults *setting.FaultError
		if !errors.As(err, &faults) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

// TestModesHaveWords: a mode is written as the documentation writes it.
func TestModesHaveWords(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "keys.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []Mode{ModeDirect, ModeSealed, ModeEphemeral} {
		if !bytes.Contains(text, []byte("`"+string(m)+"`")) {
			t.Errorf("docs/keys.md says nothing of %s", m)
		}
	}
}
