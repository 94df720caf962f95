package kms_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const vaultTestToken = "hvs.test-token-never-shown"

// transit is a transit engine over real keys, as Vault's documentation of its
// API describes it. That Vault itself behaves so is shown by internal/conformance.
type transit struct {
	*httptest.Server
	mu     sync.Mutex
	keys   map[string][]crypto.Signer // by name; version 1 first
	least  map[string]int             // min_encryption_version
	token  string
	logins int
	signs  int
	fault  http.HandlerFunc // answers in place of the engine; nil for none
	spoil  func(sig []byte)
}

func newTransit(t *testing.T) *transit {
	v := &transit{keys: map[string][]crypto.Signer{}, least: map[string]int{}, token: vaultTestToken}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/auth/token/lookup-self", func(w http.ResponseWriter, _ *http.Request) {
		answerVault(w, map[string]any{"display_name": "approle-mayfly", "policies": []string{"default", "ca"}, "accessor": "a1"})
	})
	mux.HandleFunc("POST /v1/auth/kubernetes/login", v.login)
	mux.HandleFunc("GET /v1/{mount}/keys/{name}", v.read)
	mux.HandleFunc("POST /v1/{mount}/keys/{name}", v.create)
	mux.HandleFunc("POST /v1/{mount}/sign/{name}", v.sign)
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		fault, token := v.fault, v.token
		v.mu.Unlock()
		switch {
		case fault != nil:
			fault(w, r)
		case !strings.HasSuffix(r.URL.Path, "/login") && r.Header.Get("X-Vault-Token") != token:
			refuseVault(w, http.StatusForbidden, "permission denied")
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(v.Close)
	return v
}

func answerVault(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func refuseVault(w http.ResponseWriter, status int, texts ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, texts...)})
}

func (v *transit) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ Role, JWT string }
	if json.NewDecoder(r.Body).Decode(&in) != nil || in.Role != "ca" || in.JWT != "service-account" {
		refuseVault(w, http.StatusForbidden, "permission denied")
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logins++
	v.token = "hvs.login-" + strconv.Itoa(v.logins)
	_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{"client_token": v.token, "lease_duration": 60}})
}

func (v *transit) read(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	versions := v.keys[r.PathValue("name")]
	if len(versions) == 0 {
		refuseVault(w, http.StatusNotFound)
		return
	}
	keys := map[string]any{}
	for i, k := range versions {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			refuseVault(w, http.StatusInternalServerError, err.Error())
			return
		}
		keys[strconv.Itoa(i+1)] = map[string]any{"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
	}
	answerVault(w, map[string]any{
		"type": "of the test", "supports_signing": true, "latest_version": len(versions),
		"min_encryption_version": v.least[r.PathValue("name")], "keys": keys,
	})
}

func (v *transit) create(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Type       string
		Exportable bool
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Exportable {
		refuseVault(w, http.StatusBadRequest, "bad request")
		return
	}
	v.add(r.PathValue("name"), kms.Algorithm(strings.ToUpper(in.Type)))
	w.WriteHeader(http.StatusNoContent)
}

// add makes a new version of a key.
func (v *transit) add(name string, a kms.Algorithm) {
	k := generated(a)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys[name] = append(v.keys[name], k)
}

func (v *transit) sign(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Input      []byte `json:"input"`
		Prehashed  bool   `json:"prehashed"`
		Hash       string `json:"hash_algorithm"`
		Version    int    `json:"key_version"`
		Algorithm  string `json:"signature_algorithm"`
		SaltLength string `json:"salt_length"`
		Marshaling string `json:"marshaling_algorithm"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !in.Prehashed {
		refuseVault(w, http.StatusBadRequest, "bad request")
		return
	}
	v.mu.Lock()
	versions, least, spoil := v.keys[r.PathValue("name")], v.least[r.PathValue("name")], v.spoil
	v.signs++
	v.mu.Unlock() // signatures are made at the same time
	switch {
	case len(versions) < in.Version:
		refuseVault(w, http.StatusBadRequest, "signing key not found")
		return
	case in.Version < least:
		refuseVault(w, http.StatusInternalServerError, "1 error occurred:\n\t* requested version for signing is less than the minimum encryption key version")
		return
	}
	var opts crypto.SignerOpts = map[string]crypto.Hash{"sha2-256": crypto.SHA256, "sha2-384": crypto.SHA384, "sha2-512": crypto.SHA512}[in.Hash]
	if in.Algorithm == "pss" && in.SaltLength == "hash" {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: opts.HashFunc()}
	}
	sig, err := versions[in.Version-1].Sign(rand.Reader, in.Input, opts)
	if err != nil {
		refuseVault(w, http.StatusBadRequest, err.Error())
		return
	}
	if spoil != nil {
		spoil(sig)
	}
	encoded, _ := json.Marshal(sig) // base64 in quotes
	answerVault(w, map[string]any{"signature": fmt.Sprintf("vault:v%d:%s", in.Version, strings.Trim(string(encoded), `"`))})
}

func (v *transit) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// options are for the engine, with the token in the environment.
func (v *transit) options() kms.Options {
	return kms.Options{
		Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: v.URL},
		Getenv: func(name string) string { return map[string]string{"VAULT_TOKEN": vaultTestToken}[name] },
	}
}

func TestVaultConformance(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	kmstest.Run(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		generated(a) // beforehand: an RSA key takes longer than a call may
		ref, err := kms.Generate(t.Context(), "hashivault://transit/keys/"+strings.ToLower(string(a)), a, v.options())
		if err != nil {
			t.Fatal(err)
		}
		return opened(t, ref, v.options())
	}, kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048, kms.RSA3072) // RSA-4096 by Vault itself: under the race detector it takes minutes
}

// opened opens a key and closes it with the test.
func opened(t *testing.T, ref string, o kms.Options) kms.Signer {
	t.Helper()
	s, err := kms.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(s) })
	return s
}

func TestVaultGenerateNeverOverwrites(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	const ref = "hashivault://transit/keys/ca"
	if got, err := kms.Generate(t.Context(), ref, kms.ECDSAP256, v.options()); err != nil || got != ref+"?version=1" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := kms.Generate(t.Context(), ref, kms.ECDSAP256, v.options()); !errors.Is(err, kms.ErrKeyExists) {
		t.Fatalf("%v; want ErrKeyExists", err)
	}
	v.set(func() {
		if len(v.keys["ca"]) != 1 {
			t.Errorf("%d versions", len(v.keys["ca"]))
		}
	})
}

// TestVaultPinned: a rotation changes nothing until it is asked for.
func TestVaultPinned(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	v.add("ca", kms.ECDSAP256)
	s := opened(t, "hashivault://transit/keys/ca", v.options())
	v.add("ca", kms.ECDSAP384)
	if err := kms.Try(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s); got != "hashivault://transit/keys/ca?version=1" {
		t.Errorf("pinned %s", got)
	}
	if a, err := kms.AlgorithmOf(opened(t, "hashivault://transit/keys/ca?version=2", v.options()).Public()); err != nil || a != kms.ECDSAP384 {
		t.Errorf("version 2: %s, %v", a, err)
	}
	v.set(func() { v.least["ca"] = 2 })
	if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "this version of the key may no longer sign, since min_encryption_version was raised") {
		t.Errorf("an old version signs: %v", err)
	}
	if err := s.(kms.Healthy).Health(t.Context()); err == nil || !strings.Contains(err.Error(), "version 1 may no longer sign: min_encryption_version is 2") {
		t.Errorf("health: %v", err)
	}
}

func TestVaultHealthMakesNoSignature(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	v.add("ca", kms.ECDSAP256)
	s := opened(t, "hashivault://transit/keys/ca", v.options())
	before := 0
	v.set(func() { before = v.signs })
	for range 5 {
		if err := s.(kms.Healthy).Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v.set(func() {
		if v.signs != before {
			t.Errorf("%d signatures", v.signs-before)
		}
	})
}

func TestVaultCredentials(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	v.add("ca", kms.ECDSAP256)
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
			_, err := kms.Open(t.Context(), ref, tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hvs.") {
				t.Errorf("%v; want %q and no token", err, tt.want)
			}
		})
	}
	t.Run("file read again", func(t *testing.T) {
		o := kms.Options{Access: kms.Access{Credential: kms.CredentialFile, Endpoint: v.URL, Vault: kms.VaultAccess{TokenFile: setting.Path(file)}}}
		if err := os.WriteFile(file, []byte(vaultTestToken+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := opened(t, ref, o)
		v.set(func() { v.token = "hvs.renewed" })
		defer v.set(func() { v.token = vaultTestToken })
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

// TestVaultKubernetes: one login for all, again before it expires, and again
// when Vault forgot the token.
func TestVaultKubernetes(t *testing.T) {
	t.Parallel()
	v := newTransit(t)
	v.add("ca", kms.ECDSAP256)
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
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.logins != want {
			t.Errorf("%s: %d logins; want %d", why, v.logins, want)
		}
	}
	logins(1, "at the start")
	mu.Lock()
	clock = clock.Add(41 * time.Second)
	mu.Unlock()
	logins(2, "after two thirds of the lease")
	v.set(func() { v.token = "hvs.of-another-vault" })
	logins(3, "after the token was revoked")
	if strings.Contains(logged.String(), "hvs.") || strings.Contains(logged.String(), "service-account") {
		t.Errorf("a secret is logged: %s", &logged)
	}
	if !strings.Contains(logged.String(), "Kubernetes login at auth/kubernetes, role ca") {
		t.Errorf("the credential isn't named: %s", &logged)
	}
}

// TestE1Vault: each fault's words, that it ends in time, and that the key comes
// back by itself.
func TestE1Vault(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		fault      func(v *transit, hung <-chan struct{})
	}{
		{"sealed", "sign: Vault is sealed: unseal it (", func(v *transit, _ <-chan struct{}) {
			v.fault = func(w http.ResponseWriter, _ *http.Request) {
				refuseVault(w, http.StatusServiceUnavailable, "Vault is sealed")
			}
		}},
		{"throttled", "sign: a rate limit quota is used up (HTTP 429) (3 attempts, ", func(v *transit, _ <-chan struct{}) {
			v.fault = func(w http.ResponseWriter, _ *http.Request) { refuseVault(w, http.StatusTooManyRequests, "quota") }
		}},
		{"denied", "sign: permission denied, which Vault says of both: ", func(v *transit, _ <-chan struct{}) {
			v.fault = func(w http.ResponseWriter, _ *http.Request) {
				refuseVault(w, http.StatusForbidden, "permission denied")
			}
		}},
		{"standby", "sign: the service answered with a redirect", func(v *transit, _ <-chan struct{}) {
			v.fault = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://other.example.com", http.StatusTemporaryRedirect)
			}
		}},
		{"a proxy's page", "sign: HTTP 502: the answer isn't Vault's: check the endpoint", func(v *transit, _ <-chan struct{}) {
			v.fault = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }
		}},
		{"hanging", "sign: the time for it ran out (", func(v *transit, hung <-chan struct{}) {
			v.fault = func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-hung:
				case <-r.Context().Done():
				}
			}
		}},
		{"corrupted signature", "sign: the signature that came back doesn't verify under the key that was found at the start", func(v *transit, _ <-chan struct{}) {
			v.spoil = func(sig []byte) { sig[len(sig)-1] ^= 1 }
		}},
		{"another key", "doesn't verify under the key that was found at the start", func(v *transit, _ <-chan struct{}) {
			v.keys["ca"] = []crypto.Signer{generated(kms.ECDSAP256)}
		}},
		{"deleted", "sign: HTTP 400: signing key not found", func(v *transit, _ <-chan struct{}) { delete(v.keys, "ca") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := newTransit(t)
			v.add("ca", kms.ECDSAP256)
			s := opened(t, "hashivault://transit/keys/ca", v.options())
			kept := v.keys["ca"]
			hung := make(chan struct{})
			v.set(func() { tt.fault(v, hung) })
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if tt.name == "hanging" {
				ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
			}
			began := time.Now()
			err := kms.Try(ctx, s)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), strings.TrimPrefix(v.URL, "http://")) || strings.Contains(err.Error(), "hvs.") {
				t.Errorf("%v; want %q, the host, and no token", err, tt.want)
			}
			if tt.name == "hanging" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v; want context.DeadlineExceeded", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
			close(hung)
			v.set(func() { v.fault, v.spoil, v.keys["ca"] = nil, nil, kept })
			if err := kms.Try(t.Context(), s); err != nil {
				t.Errorf("no recovery: %v", err)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		t.Parallel()
		v := newTransit(t)
		v.add("ca", kms.ECDSAP256)
		s := opened(t, "hashivault://transit/keys/ca", v.options())
		v.Close()
		if err := kms.Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "connect: ") || !strings.Contains(err.Error(), "(3 attempts, ") {
			t.Errorf("%v", err)
		}
	})
}

// generated is a new key; RSA keys are made once, since that takes seconds.
var generated = func() func(a kms.Algorithm) crypto.Signer {
	var mu sync.Mutex
	made := make(map[kms.Algorithm]crypto.Signer)
	bits := map[kms.Algorithm]int{kms.RSA2048: 2048, kms.RSA3072: 3072, kms.RSA4096: 4096}
	return func(a kms.Algorithm) crypto.Signer {
		if bits[a] == 0 {
			k, err := ecdsa.GenerateKey(curveOf[a], rand.Reader)
			if err != nil {
				panic(err)
			}
			return k
		}
		mu.Lock()
		defer mu.Unlock()
		if made[a] == nil {
			k, err := rsa.GenerateKey(rand.Reader, bits[a])
			if err != nil {
				panic(err)
			}
			made[a] = k
		}
		return made[a]
	}
}()

// curveOf is the curve of each algorithm that has one.
var curveOf = map[kms.Algorithm]elliptic.Curve{kms.ECDSAP256: elliptic.P256(), kms.ECDSAP384: elliptic.P384(), kms.ECDSAP521: elliptic.P521()}
