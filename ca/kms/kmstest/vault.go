package kmstest

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// VaultToken is the token that the stand-in takes, until a test sets another.
const VaultToken = "hvs." + Secret

// vault is a transit engine, as Vault's documentation of its API describes it.
// That Vault itself behaves so is shown by internal/tools/conformance.
type vault struct{ *Cloud }

// NewVault is a stand-in for Vault with a transit engine.
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
		Cloud: c.Cloud, Ref: "hashivault://transit/keys/ca", Pinned: "hashivault://transit/keys/ca?version=1", Name: "ca",
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
		return parts[len(parts)-1] // login, which a test answers, and lookup-self
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

func (c *vault) answer(q request) (any, error) {
	if q.Header.Get("X-Vault-Token") != c.accepted() {
		return nil, vaultFault(http.StatusForbidden, "permission denied")
	}
	name := path.Base(q.URL.Path)
	var data map[string]any
	var err error
	switch q.operation {
	case "lookup-self":
		data = map[string]any{"display_name": "approle-mayfly", "policies": []string{"default", "ca"}, "accessor": "a1"}
	case "keys":
		data, err = c.read(name)
	case "sign":
		data, err = c.sign(name, q)
	case "encrypt", "decrypt":
		data, err = c.crypt(name, q)
	default:
		err = vaultFault(http.StatusNotFound, "")
	}
	return map[string]any{"data": data}, err
}

// vaultFault has no text for a key that isn't there.
func vaultFault(status int, text string) Fault { return Fault{Status: status, Code: text} }

func (c *vault) read(name string) (map[string]any, error) {
	all := c.Versions(name)
	if len(all) == 0 {
		return nil, vaultFault(http.StatusNotFound, "")
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
		keys[strconv.Itoa(i+1)] = map[string]any{"public_key": string(catest.PublicPEM(c.t, v.Key.Public()))}
	}
	return map[string]any{
		"type": kind, "supports_signing": all[0].Key != nil, "latest_version": len(all), "min_encryption_version": least, "keys": keys,
	}, nil
}

func (c *vault) sign(name string, q request) (map[string]any, error) {
	var in struct {
		Input      []byte `json:"input"`
		Prehashed  bool   `json:"prehashed"`
		Hash       string `json:"hash_algorithm"`
		Version    int    `json:"key_version"`
		Algorithm  string `json:"signature_algorithm"`
		SaltLength string `json:"salt_length"`
	}
	if err := json.Unmarshal(q.body, &in); err != nil || !in.Prehashed {
		return nil, vaultFault(http.StatusBadRequest, "bad request")
	}
	v, found := c.at(name, in.Version)
	switch {
	case !found:
		return nil, vaultFault(http.StatusBadRequest, "signing key not found")
	case v.Disabled:
		return nil, vaultFault(http.StatusInternalServerError, "1 error occurred:\n\t* requested version for signing is less than the minimum encryption key version")
	}
	sig, err := c.signature(q.fault, v.Key, in.Input, signerOpts(in.Algorithm == "pss" && in.SaltLength == "hash", in.Hash))
	if err != nil {
		return nil, vaultFault(http.StatusBadRequest, err.Error())
	}
	return map[string]any{"signature": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sig))}, nil
}

func (c *vault) crypt(name string, q request) (map[string]any, error) {
	var in struct {
		Plaintext  []byte
		Ciphertext string
		About      []byte `json:"associated_data"`
		Version    int    `json:"key_version"`
	}
	if err := json.Unmarshal(q.body, &in); err != nil {
		return nil, vaultFault(http.StatusBadRequest, "bad request")
	}
	if q.operation == "encrypt" {
		sealed := c.seal(fmt.Sprint(name, in.Version), in.Plaintext, in.About)
		return map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sealed))}, nil
	}
	version, text, _ := strings.Cut(strings.TrimPrefix(in.Ciphertext, "vault:v"), ":")
	plain, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		plain, err = c.unseal(name+version, plain, in.About)
	}
	if err != nil {
		return nil, vaultFault(http.StatusBadRequest, "cipher: message authentication failed")
	}
	return map[string]any{"plaintext": plain}, nil
}
