package vault_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// wantError wants an error with a part.
func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("%v; want %q", err, part)
	}
}

// opened opens a key and closes it with the test.
func opened(t *testing.T, ref string, o kms.Options) kms.Signer {
	t.Helper()
	s, err := keystore.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(s) })
	return s
}

// TestRetired: a version that may no longer sign says so.
func TestRetired(t *testing.T) {
	t.Parallel()
	s := kmstest.NewVault(t, kmstest.Key(t, kms.ECDSAP256))
	signer := s.Open(t)
	s.Add(s.Name, kmstest.Key(t, kms.ECDSAP384))
	if a, err := kms.AlgorithmOf(opened(t, s.Ref+"?version=2", s.Options).Public()); err != nil || a != kms.ECDSAP384 {
		t.Errorf("version 2: %s, %v", a, err)
	}
	s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true })
	wantError(t, kms.Try(t.Context(), signer), "this version of the key may no longer sign, since min_encryption_version was raised")
	healthy, ok := signer.(kms.Healthy)
	if !ok {
		t.Fatal("has no Health")
	}
	wantError(t, healthy.Health(t.Context()), "version 1 may no longer sign: min_encryption_version is 2")
}

func TestSealed(t *testing.T) {
	t.Parallel()
	s := kmstest.NewVault(t, kmstest.Key(t, kms.ECDSAP256))
	signer := s.Open(t)
	s.Always(s.Codes["sealed"], s.Sign)
	wantError(t, kms.Try(t.Context(), signer), "sign: Vault is sealed: unseal it (3 attempts, ")
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	v := kmstest.NewVault(t, kmstest.Key(t, kms.ECDSAP256))
	const ref = "hashivault://transit/keys/ca"
	file := filepath.Join(t.TempDir(), "token")
	env := func(values map[string]string) func(string) string {
		return func(name string) string { return values[name] }
	}
	for _, tt := range []struct {
		name string
		o    kms.Options
		want string
	}{
		{"none named", kms.Options{}, "needs a credential: set it to one of env, file, workload, cli"},
		{"another's", kms.Options{Access: kms.Access{Credential: kms.CredentialProfile}}, `has no credential "profile"`},
		{"env without a token", kms.Options{Access: kms.Access{Credential: kms.CredentialEnv}}, "VAULT_TOKEN isn't set"},
		{"no endpoint", kms.Options{Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: "none"}}, "where is Vault? set endpoint, or VAULT_ADDR"},
		{"file without a path", kms.Options{Access: kms.Access{Credential: kms.CredentialFile}}, "set vault.token_file"},
		{"file that is missing", kms.Options{Access: kms.Access{Credential: kms.CredentialFile, Vault: kms.VaultAccess{TokenFile: "/nowhere/token"}}}, "/nowhere/token"},
		{"cli not logged in", kms.Options{Access: kms.Access{Credential: kms.CredentialCLI}, Getenv: env(map[string]string{"HOME": "/nowhere"})}, "/nowhere/.vault-token"},
		{"workload without a role", kms.Options{Access: kms.Access{Credential: kms.CredentialWorkload}}, "set vault.role"},
		{"wrong token", kms.Options{Access: kms.Access{Credential: kms.CredentialEnv}, Getenv: env(map[string]string{"VAULT_TOKEN": "hvs.wrong"})},
			"permission denied, which Vault says of both: the token is wrong or has expired, or its policy lacks `read` on transit/keys/ca and `update` on transit/sign/ca"},
		{"plain http elsewhere", kms.Options{Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: "http://vault.example.com:8200"}}, "must be https"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.o.Getenv == nil {
				tt.o.Getenv = env(nil)
			}
			switch tt.o.Access.Endpoint {
			case "":
				tt.o.Access.Endpoint = v.URL
			case "none":
				tt.o.Access.Endpoint = ""
			}
			_, err := keystore.Open(t.Context(), ref, tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hvs.") {
				t.Errorf("%v; want %q and no token", err, tt.want)
			}
		})
	}
	t.Run("file read again", func(t *testing.T) {
		o := kms.Options{Access: kms.Access{Credential: kms.CredentialFile, Endpoint: v.URL, Vault: kms.VaultAccess{TokenFile: setting.Path(file)}}}
		if err := os.WriteFile(file, []byte(kmstest.VaultToken+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := opened(t, ref, o)
		v.SetToken("hvs.renewed")
		defer v.SetToken(kmstest.VaultToken)
		if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("an old token signs: %v", err)
		}
		if err := os.WriteFile(file, []byte("hvs.renewed"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := kms.Try(t.Context(), s); err != nil {
			t.Errorf("the new token: %v", err)
		}
	})
}

// TestKubernetesLogin: one login for all, again before it expires, and again
// when Vault forgot the token.
func TestKubernetesLogin(t *testing.T) {
	t.Parallel()
	v := kmstest.NewVault(t, kmstest.Key(t, kms.ECDSAP256))
	v.Always(kmstest.Fault{Answer: func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Role, JWT string }
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.Role != "ca" || in.JWT != "service-account" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":["permission denied"]}`)
			return
		}
		token := fmt.Sprintf("hvs.login-%d", v.Count("login"))
		v.SetToken(token)
		fmt.Fprintf(w, `{"auth":{"client_token":%q,"lease_duration":60}}`, token)
	}}, "login")
	file := filepath.Join(t.TempDir(), "jwt")
	if err := os.WriteFile(file, []byte("service-account"), 0o600); err != nil {
		t.Fatal(err)
	}
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var mu sync.Mutex
	var logged bytes.Buffer
	s := opened(t, "hashivault://transit/keys/ca", kms.Options{
		Access: kms.Access{Credential: kms.CredentialWorkload, Endpoint: v.URL, Vault: kms.VaultAccess{Role: "ca", TokenFile: setting.Path(file)}},
		Getenv: func(string) string { return "" },
		Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now: func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return clock
		},
	})
	logins := func(want int, why string) {
		t.Helper()
		if err := kms.Try(t.Context(), s); err != nil {
			t.Errorf("%s: %v", why, err)
		}
		if logins := v.Count("login"); logins != want {
			t.Errorf("%s: %d logins; want %d", why, logins, want)
		}
	}
	logins(1, "at the start")
	mu.Lock()
	clock = clock.Add(41 * time.Second)
	mu.Unlock()
	logins(2, "after two thirds of the lease")
	v.SetToken("hvs.of-another-vault")
	logins(3, "after the token was revoked")
	if strings.Contains(logged.String(), "hvs.") || strings.Contains(logged.String(), "service-account") {
		t.Errorf("a secret is logged: %s", &logged)
	}
	if !strings.Contains(logged.String(), "Kubernetes login at auth/kubernetes, role ca") {
		t.Errorf("the credential isn't named: %s", &logged)
	}
}
