//go:build conformance

package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// realVault is `vault server -dev` of the binary that VAULT_BIN names.
type realVault struct{ url, token string }

// startVault runs Vault until the test ends.
func startVault(t *testing.T) realVault {
	t.Helper()
	binary := os.Getenv("VAULT_BIN")
	if binary == "" {
		t.Fatal("VAULT_BIN isn't set: run this with `make conformance-vault`")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil { // Vault wants the number of a free port
		t.Fatal(err)
	}
	v := realVault{url: "http://" + address, token: "root-" + rand.Text()}
	var output bytes.Buffer
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	c := exec.CommandContext(ctx, binary, "server", "-dev", "-dev-no-store-token", "-dev-listen-address="+address, "-dev-root-token-id="+v.token)
	c.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	c.Stdout, c.Stderr = &output, &output
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("vault said:\n%s", &output)
		}
	})
	for began := time.Now(); ; {
		if response, err := http.Get(v.url + "/v1/sys/health"); err == nil { //nolint:noctx // loopback, until it answers
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("vault doesn't answer:\n%s", &output)
		}
	}
	v.post(t, "sys/mounts/transit", map[string]any{"type": "transit"}, nil)
	return v
}

// post is one call of Vault's own API, with the root token.
func (v realVault) post(t *testing.T, path string, in, out any) {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.url+"/v1/"+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", v.token)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode > 299 {
		t.Fatalf("POST %s: HTTP %d", path, response.StatusCode)
	}
	if out != nil {
		if err := json.NewDecoder(response.Body).Decode(out); err != nil {
			t.Fatal(err)
		}
	}
}

func (v realVault) options(token string) kms.Options {
	return kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv},
		Getenv: func(name string) string { return map[string]string{"VAULT_ADDR": v.url, "VAULT_TOKEN": token}[name] },
	}
}

// TestRealVault holds HashiCorp Vault itself to the suite, and Vault's own
// refusals to the words that the operator reads.
func TestRealVault(t *testing.T) {
	v := startVault(t)
	t.Run("conformance", func(t *testing.T) {
		kmstest.Run(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
			ref, err := kms.Generate(t.Context(), "hashivault://transit/keys/"+strings.ToLower(string(a)), a, v.options(v.token))
			if err != nil {
				t.Fatal(err)
			}
			return opened(t, ref, v.options(v.token))
		})
	})

	const ref = "hashivault://transit/keys/life"
	if _, err := kms.Generate(t.Context(), ref, kms.ECDSAP256, v.options(v.token)); err != nil {
		t.Fatal(err)
	}
	if _, err := kms.Generate(t.Context(), ref, kms.ECDSAP384, v.options(v.token)); err == nil || !strings.Contains(err.Error(), kms.ErrKeyExists.Error()) {
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

	for name, tt := range map[string]struct{ ref, token, want string }{
		"no such key":   {"hashivault://transit/keys/none", v.token, "there is no key none in a transit engine at transit"},
		"no such mount": {"hashivault://none/keys/life", v.token, "there is no key life in a transit engine at none"},
		"not allowed":   {"hashivault://transit/keys/ecdsa-p256", made.Auth.ClientToken, "permission denied, which Vault says of both"},
		"wrong token":   {ref, "hvs.wrong", "permission denied, which Vault says of both"},
		"no version":    {ref + "?version=9", v.token, "version 9 isn't there: the latest is 2"},
	} {
		if _, err := kms.Open(t.Context(), tt.ref, v.options(tt.token)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}

	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(made.Auth.ClientToken), 0o600); err != nil {
		t.Fatal(err)
	}
	opened(t, ref, kms.Options{Access: kms.Access{Credential: kms.CredentialFile, Endpoint: v.url, Vault: kms.VaultAccess{TokenFile: setting.Path(token)}}})

	v.post(t, "sys/seal", nil, nil)
	if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "Vault is sealed: unseal it") {
		t.Errorf("sealed: %v", err)
	}
}
