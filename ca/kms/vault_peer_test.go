//go:build conformance

package kms_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestRealVault holds HashiCorp Vault itself to the suite, and Vault's own
// refusals to the words that the operator reads.
func TestRealVault(t *testing.T) {
	v := startVault(t)
	t.Run("conformance", func(t *testing.T) {
		runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
			ref, err := keystore.Generate(t.Context(), "hashivault://transit/keys/"+strings.ToLower(string(a)), a, v.options(v.Token))
			if err != nil {
				t.Fatal(err)
			}
			return opened(t, ref, v.options(v.Token))
		})
	})

	const ref = "hashivault://transit/keys/life"
	if _, err := keystore.Generate(t.Context(), ref, kms.ECDSAP256, v.options(v.Token)); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Generate(t.Context(), ref, kms.ECDSAP384, v.options(v.Token)); err == nil || !strings.Contains(err.Error(), kms.ErrKeyExists.Error()) {
		t.Errorf("the key made twice: %v", err)
	}
	v.post(t, "sys/policies/acl/ca", map[string]string{"policy": `
path "transit/keys/life" { capabilities = ["read"] }
path "transit/sign/life" { capabilities = ["update"] }`}, nil)
	var made struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		}
	}
	v.post(t, "auth/token/create", map[string]any{"policies": []string{"ca"}, "no_parent": true}, &made)
	s := opened(t, ref, v.options(made.Auth.ClientToken)) // the documented policy is enough

	v.post(t, "transit/keys/life/rotate", nil, nil)
	if err := kms.Try(t.Context(), s); err != nil || fmt.Sprint(s) != ref+"?version=1" {
		t.Errorf("rotated under us: %v, %v", s, err)
	}
	v.post(t, "transit/keys/life/config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2}, nil)
	if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "this version of the key may no longer sign") {
		t.Errorf("a retired version: %v", err)
	}
	v.post(t, "transit/keys/life/config", map[string]any{"min_decryption_version": 1, "min_encryption_version": 1}, nil)
	if err := kms.Try(t.Context(), s); err != nil {
		t.Errorf("no recovery: %v", err)
	}

	v.post(t, "transit/keys/symmetric", map[string]any{"type": "aes256-gcm96"}, nil)
	for name, tt := range map[string]struct{ ref, token, want string }{
		"one that seals": {"hashivault://transit/keys/symmetric", v.Token, `a key of type "aes256-gcm96" doesn't sign`},
		"no such key":    {"hashivault://transit/keys/none", v.Token, "there is no key none in a transit engine at transit"},
		"no such mount":  {"hashivault://none/keys/life", v.Token, "there is no key life in a transit engine at none (in this namespace): nothing is mounted there"},
		"not allowed":    {"hashivault://transit/keys/ecdsa-p256", made.Auth.ClientToken, "permission denied, which Vault says of both"},
		"wrong token":    {ref, "hvs.wrong", "permission denied, which Vault says of both"},
		"no version":     {ref + "?version=9", v.Token, "version 9 isn't there: the latest is 2"},
	} {
		if _, err := keystore.Open(t.Context(), tt.ref, v.options(tt.token)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}

	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(made.Auth.ClientToken), 0o600); err != nil {
		t.Fatal(err)
	}
	opened(t, ref, kms.Options{Access: kms.Access{Credential: kms.CredentialFile, Endpoint: v.URL, Vault: kms.VaultAccess{TokenFile: setting.Path(token)}}})

	v.post(t, "sys/seal", nil, nil)
	if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "Vault is sealed: unseal it") {
		t.Errorf("sealed: %v", err)
	}
}
