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
// That Vault itself behaves so is shown by internal/conformance.
type vault struct{ *Cloud }

// NewVault is a stand-in for Vault with a transit engine and a Kubernetes login.
func NewVault(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &vault{newCloud(t)}
	c.start(c, nil)
	c.SetToken(VaultToken)
	c.Add("ca", key)
	for _, name := range []string{"sealing", "other", "sealing", "other", "sealing", "other"} { // three versions of each
		c.Add(name, nil)
	}
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
		sealing: Sealing{
			Ref: "hashivault://transit/keys/sealing", Pinned: "hashivault://transit/keys/sealing?version=3", Other: "hashivault://transit/keys/other",
			Authenticates: true, Unseal: "decrypt",
			Denied: "its policy lacks `read` on transit/keys/sealing and `update` on transit/decrypt/sealing, and on transit/encrypt/sealing to make a sealed key,",
		},
	}
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
	token, _ := c.Token()
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
	case "encrypt", "decrypt":
		c.crypt(w, operation, name, body, f)
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
	keys, kind, least := map[string]any{}, "of the test", 0
	for i, v := range all {
		if v.Disabled {
			least = i + 2 // min_encryption_version: Vault's way to disable a version
		}
		if v.Key == nil { // a symmetric key's `keys` are times
			keys[strconv.Itoa(i+1)], kind = 1700000000+i, "aes256-gcm96"
			continue
		}
		der, err := x509.MarshalPKIXPublicKey(v.Key.Public())
		if err != nil {
			c.t.Error(err)
		}
		keys[strconv.Itoa(i+1)] = map[string]any{"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
	}
	c.data(w, map[string]any{
		"type": kind, "supports_signing": all[0].Key != nil, "latest_version": len(all), "min_encryption_version": least, "keys": keys,
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
	switch {
	case !found:
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "signing key not found"})
		return
	case v.Disabled:
		c.refuse(w, Fault{Status: http.StatusInternalServerError, Code: "1 error occurred:\n\t* requested version for signing is less than the minimum encryption key version"})
		return
	}
	sig, err := c.signature(f, v.Key, in.Input, signerOpts(in.Algorithm == "pss" && in.SaltLength == "hash", in.Hash))
	if err != nil {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: err.Error()})
		return
	}
	c.data(w, map[string]any{"signature": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sig))})
}

func (c *vault) crypt(w http.ResponseWriter, operation, name string, body []byte, f Fault) {
	var in struct {
		Plaintext  []byte
		Ciphertext string
		About      []byte `json:"associated_data"`
		Version    int    `json:"key_version"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "bad request"})
		return
	}
	if operation == "encrypt" {
		sealed := seal(fmt.Sprint(name, in.Version), in.Plaintext, in.About)
		c.data(w, map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sealed))})
		return
	}
	version, text, _ := strings.Cut(strings.TrimPrefix(in.Ciphertext, "vault:v"), ":")
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		sealed, err = unseal(f, name+version, sealed, in.About)
	}
	if err != nil {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "cipher: message authentication failed"})
		return
	}
	c.data(w, map[string]any{"plaintext": sealed})
}
