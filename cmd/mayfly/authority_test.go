package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// TestNewAuthority: what the flags name is written into a state file in another folder,
// with nothing left out.
func TestNewAuthority(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	written := func(a authority.NamedConfig) string {
		n, err := strict.Encode(a, authority.NamedConfig{}, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		b, err := strict.JSON(n)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	at := func(name string) string { return filepath.Join(here, name) }
	var a kmsAccess
	a.sealedKey, a.passphrase.File = "issuing.json", "pass"
	a.access = kms.Access{CAFile: "ca.pem", Vault: kms.VaultAccess{TokenFile: "/run/token"}}
	sealed, err := newAuthority("y2027", "chain.pem", "hashivault://transit/keys/sealing", a)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"mode": "sealed"`, `"sealed_key": "` + at("issuing.json") + `"`, `"chain": "` + at("chain.pem") + `"`, `"key": "hashivault://transit/keys/sealing"`,
		`"file": "` + at("pass") + `"`, `"ca_file": "` + at("ca.pem") + `"`, `"token_file": "/run/token"`,
	} {
		if text := written(sealed); !strings.Contains(text, want) {
			t.Errorf("sealed, without %s: %s", want, text)
		}
	}
	plain, err := newAuthority("y2027", "chain.pem", "file:issuing.pem", kmsAccess{})
	if err != nil {
		t.Fatal(err)
	}
	if text := written(plain); !strings.Contains(text, `"key": "file:`+at("issuing.pem")+`"`) || strings.Contains(text, "mode") || strings.Contains(text, "sealed_key") || strings.Contains(text, "passphrase") {
		t.Errorf("a file: %s", text)
	}
}
