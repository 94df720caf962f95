package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestNewAuthority: what the flags name is written for a configuration whose paths
// begin at another folder, with nothing left out.
func TestNewAuthority(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) setting.Path { return setting.Path(filepath.Join(here, name)) }
	var a kmsAccess
	a.sealedKey, a.passphrase.File = "issuing.json", "pass"
	a.access = kms.Access{CAFile: "ca.pem", Vault: kms.VaultAccess{TokenFile: "/run/token"}}
	sealed, err := newAuthority("y2027", "chain.pem", "hashivault://transit/keys/sealing", a)
	if err != nil {
		t.Fatal(err)
	}
	if c := sealed.Config; c.Mode != authority.ModeSealed || c.SealedKey != at("issuing.json") || c.Chain != at("chain.pem") ||
		c.Key != "hashivault://transit/keys/sealing" || c.Passphrase.File != at("pass") ||
		c.CAFile != at("ca.pem") || c.Vault.TokenFile != "/run/token" {
		t.Errorf("sealed: %+v", c)
	}
	plain, err := newAuthority("y2027", "chain.pem", "file:issuing.pem", kmsAccess{})
	if c := plain.Config; err != nil || c.Mode != "" || c.SealedKey != "" || c.Key != setting.KeyRef("file:"+at("issuing.pem")) || !c.Passphrase.IsZero() {
		t.Errorf("a file: %+v, %v", c, err)
	}
}
