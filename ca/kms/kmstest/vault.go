package kmstest

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// VaultToken is the token that the stand-in takes until a login gave another.
const VaultToken = "hvs." + Secret

// vault is a transit engine, as Vault's documentation of its API describes it.
// That Vault itself behaves so is shown by internal/tools/conformance.
type vault struct {
	*Cloud
	token  string
	least  map[string]int // min_encryption_version
	logins int
}

// NewVault is a stand-in for Vault with a transit engine and a Kubernetes login.
func NewVault(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &vault{Cloud: newCloud(t), token: VaultToken, least: make(map[string]int)}
	c.start(c, nil)
	c.Add("ca", key)
	return &StandIn{
		Cloud: c.Cloud, protocol: c, Ref: "hashivault://transit/keys/ca", Pinned: "hashivault://transit/keys/ca?version=1", Name: "ca",
		Host: strings.TrimPrefix(c.URL, "http://"), Get: "keys", Sign: "sign",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: c.URL},
			Getenv: Environment("VAULT_TOKEN", VaultToken),
		},
		Codes: map[string]Fault{
			"throttled": {Status: http.StatusTooManyRequests, Code: "quota"},
			"denied":    {Status: http.StatusForbidden, Code: "permission denied"},
			"disabled":  {Status: http.StatusInternalServerError, Code: "requested version for signing is less than the minimum encryption key version"},
			"deleted":   {Status: http.StatusBadRequest, Code: "signing key not found"},
			"internal":  {Status: http.StatusInternalServerError, Code: "internal error"},
			"sealed":    {Status: http.StatusServiceUnavailable, Code: "Vault is sealed"},
		},
	}
}

// Token is the token that a stand-in of Vault takes, and how many it gave out.
func (s *StandIn) Token() (token string, logins int) {
	c := s.transit()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token, c.logins
}

// SetToken makes a stand-in of Vault take another token, and that alone.
func (s *StandIn) SetToken(token string) {
	c := s.transit()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = token
}

// SetLeast sets min_encryption_version in a stand-in of Vault.
func (s *StandIn) SetLeast(version int) {
	c := s.transit()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.least[s.Name] = version
}

func (s *StandIn) transit() *vault {
	s.t.Helper()
	c, ok := s.protocol.(*vault)
	if !ok {
		s.t.Fatal("only Vault has that")
	}
	return c
}

// operation is the part of the path between the mount and the key.
func (c *vault) operation(r *http.Request) string {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch {
	case parts[0] == "auth":
		return parts[len(parts)-1] // login, lookup-self
	case r.Method == http.MethodPost && len(parts) > 1 && parts[1] == "keys":
		return "create"
	case len(parts) > 1:
		return parts[1]
	default:
		return r.URL.Path
	}
}

func (c *vault) refuse(w http.ResponseWriter, f Fault) {
	texts := []string{f.Code}
	if f.Code == "" {
		texts = []string{} // as of a key that isn't there
	}
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": texts})
}

func (c *vault) data(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data}) // the client may have gone
}

func (c *vault) answer(w http.ResponseWriter, r *http.Request, operation string, body []byte, f Fault) {
	c.mu.Lock()
	token := c.token
	c.mu.Unlock()
	if operation != "login" && r.Header.Get("X-Vault-Token") != token {
		c.refuse(w, Fault{Status: http.StatusForbidden, Code: "permission denied"})
		return
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch operation {
	case "lookup-self":
		c.data(w, map[string]any{"display_name": "approle-mayfly", "policies": []string{"default", "ca"}, "accessor": "a1"})
	case "login":
		c.login(w, body)
	case "keys":
		c.read(w, name)
	case "create":
		c.create(w, name, body)
	case "sign":
		c.sign(w, name, body, f)
	default:
		c.refuse(w, Fault{Status: http.StatusNotFound})
	}
}

func (c *vault) login(w http.ResponseWriter, body []byte) {
	var in struct{ Role, JWT string }
	if json.Unmarshal(body, &in) != nil || in.Role != "ca" || in.JWT != "service-account" {
		c.refuse(w, Fault{Status: http.StatusForbidden, Code: "permission denied"})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logins++
	c.token = "hvs.login-" + strconv.Itoa(c.logins)
	_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{"client_token": c.token, "lease_duration": 60}})
}

func (c *vault) read(w http.ResponseWriter, name string) {
	all := c.versions(name)
	if len(all) == 0 {
		c.refuse(w, Fault{Status: http.StatusNotFound})
		return
	}
	c.mu.Lock()
	least := c.least[name]
	c.mu.Unlock()
	keys := map[string]any{}
	for i, v := range all {
		if v.Disabled {
			least = i + 2 // Vault's way to disable a version
		}
		der, err := x509.MarshalPKIXPublicKey(v.Key.Public())
		if err != nil {
			c.t.Error(err)
		}
		keys[strconv.Itoa(i+1)] = map[string]any{"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
	}
	c.data(w, map[string]any{
		"type": "of the test", "supports_signing": true, "latest_version": len(all), "min_encryption_version": least, "keys": keys,
	})
}

func (c *vault) create(w http.ResponseWriter, name string, body []byte) {
	var in struct {
		Type       string
		Exportable bool
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Exportable {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "bad request"})
		return
	}
	c.Add(name, Key(c.t, kms.Algorithm(strings.ToUpper(in.Type))))
	w.WriteHeader(http.StatusNoContent)
}

func (c *vault) sign(w http.ResponseWriter, name string, body []byte, f Fault) {
	var in struct {
		Input      []byte `json:"input"`
		Prehashed  bool   `json:"prehashed"`
		Hash       string `json:"hash_algorithm"`
		Version    int    `json:"key_version"`
		Algorithm  string `json:"signature_algorithm"`
		SaltLength string `json:"salt_length"`
	}
	if err := json.Unmarshal(body, &in); err != nil || !in.Prehashed {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "bad request"})
		return
	}
	v, found := c.at(name, in.Version)
	c.mu.Lock()
	least := c.least[name]
	c.mu.Unlock()
	switch {
	case !found:
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "signing key not found"})
		return
	case v.Disabled, in.Version < least:
		c.refuse(w, Fault{Status: http.StatusInternalServerError, Code: "1 error occurred:\n\t* requested version for signing is less than the minimum encryption key version"})
		return
	}
	hash := map[string]crypto.Hash{"sha2-256": crypto.SHA256, "sha2-384": crypto.SHA384, "sha2-512": crypto.SHA512}[in.Hash]
	sig, err := c.signature(f, v.Key, in.Input, pssOr(in.Algorithm == "pss" && in.SaltLength == "hash", hash))
	if err != nil {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: err.Error()})
		return
	}
	c.data(w, map[string]any{"signature": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sig))})
}
