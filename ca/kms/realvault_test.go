//go:build conformance

package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// realVault is `vault server -dev` of the binary that VAULT_BIN names.
type realVault struct{ URL, Token string }

// startVault runs Vault until the test ends.
func startVault(t testing.TB) realVault {
	t.Helper()
	binary := os.Getenv("VAULT_BIN")
	if binary == "" {
		t.Fatal("VAULT_BIN isn't set: run this with internal/tools/conformance/vault.sh")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // on this machine
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil { // Vault wants the number of a free port
		t.Fatal(err)
	}
	v := realVault{URL: "http://" + address, Token: "root-" + rand.Text()}
	var output bytes.Buffer
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	c := exec.CommandContext(ctx, binary, "server", "-dev", "-dev-no-store-token", "-dev-listen-address="+address, "-dev-root-token-id="+v.Token) // #nosec G204 G702 -- a test's own program
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
		if response, err := http.Get(v.URL + "/v1/sys/health"); err == nil { //nolint:noctx // loopback, until it answers
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
func (v realVault) post(t testing.TB, path string, in, out any) {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.URL+"/v1/"+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", v.Token)
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

// options reach Vault with a token.
func (v realVault) options(token string) kms.Options {
	return kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv},
		Getenv: kmstest.Environment("VAULT_ADDR", v.URL, "VAULT_TOKEN", token),
	}
}
