package kmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	azureHost = "demo.vault.azure.net"
	// AzureTenant is the tenant that the stand-in's Entra gives tokens for.
	AzureTenant = "11111111-2222-3333-4444-555555555555"
)

// azure speaks the wire protocols of Key Vault and Entra.
type azure struct{ *Cloud }

// NewAzure is a stand-in for a vault and for Entra, over TLS.
func NewAzure(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &azure{newCloud(t)}
	certificate, caFile := Certificate(t, azureHost)
	c.start(c, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	c.Add("issuing", key)
	return &StandIn{
		Cloud: c.Cloud, protocol: c, Ref: "https://" + azureHost + "/keys/issuing", Pinned: "https://" + azureHost + "/keys/issuing/" + azureVersion(1), Name: "issuing",
		Host: azureHost, Get: "get", Sign: "sign",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: c.URL, IdentityEndpoint: c.URL, CAFile: caFile},
			Getenv: Environment("AZURE_TENANT_ID", AzureTenant, "AZURE_CLIENT_ID", "app", "AZURE_CLIENT_SECRET", Secret),
		},
		Codes: map[string]Fault{
			"throttled": {Status: 429, Code: "Throttled"},
			"denied":    {Status: 403, Code: "Forbidden"},
			"disabled":  {Status: 403, Code: "KeyDisabled"},
			"deleted":   {Status: 409, Code: "ObjectIsDeletedButRecoverable"},
			"internal":  {Status: 500, Code: "InternalError"},
		},
	}
}

// azureVersion is the vault's name of version n: 32 hexadecimal digits.
func azureVersion(n int) string { return fmt.Sprintf("%032x", 0xa000+n) }

// Certificate makes a certificate for a host and this machine, and a file with
// who issued it.
func Certificate(t testing.TB, host string) (tls.Certificate, setting.Path) {
	t.Helper()
	certificate, path := catest.Server(t, host), filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, catest.PEM(certificate.Leaf), 0o600); err != nil {
		t.Fatal(err)
	}
	return certificate, setting.Path(path)
}

func (c *azure) operation(r *http.Request) string {
	switch {
	case strings.HasSuffix(r.URL.Path, "openid-configuration"):
		return "discovery"
	case strings.Contains(r.URL.Path, AzureTenant):
		return "token"
	case !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
		return "challenge"
	case strings.HasSuffix(r.URL.Path, "/sign"):
		return "sign"
	case strings.HasSuffix(r.URL.Path, "/create"):
		return "create"
	default:
		return "get"
	}
}

func (c *azure) refuse(w http.ResponseWriter, f Fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.Status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":"as the test says","innererror":{"code":"Inner%s"}}}`, f.Code, f.Code)
}

func (c *azure) answer(w http.ResponseWriter, r *http.Request, operation string, body []byte, f Fault) {
	w.Header().Set("Content-Type", "application/json")
	base := "https://" + r.Host + "/" + AzureTenant
	switch operation {
	case "discovery":
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q}`, base+"/v2.0", base+"/oauth2/v2.0/authorize", base+"/oauth2/v2.0/token") //nolint:gosec // G705: to a test
	case "token":
		claims := base64.RawURLEncoding.EncodeToString([]byte(`{"tid":"` + AzureTenant + `","oid":"the-object","appid":"app"}`))
		fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":3600,"access_token":"e30.%s.sig"}`, claims)
	case "challenge":
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+AzureTenant+`", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
	default:
		if r.Host != azureHost {
			c.t.Errorf("the vault is asked as %s", r.Host)
		}
		c.key(w, operation, strings.Split(strings.TrimPrefix(r.URL.Path, "/keys/"), "/"), body, f)
	}
}

// key does what is asked at /keys/NAME[/VERSION][/OPERATION].
func (c *azure) key(w http.ResponseWriter, operation string, path []string, body []byte, f Fault) {
	name := path[0]
	all := c.versions(name)
	if operation == "create" {
		c.create(w, name, body)
		return
	}
	number := len(all) // of a key without a version: the newest
	if len(path) > 1 && path[1] != "" {
		n, err := strconv.ParseInt(path[1], 16, 64)
		if err != nil {
			n = 0
		}
		number = int(n) - 0xa000
	} else if operation == "sign" {
		c.t.Errorf("signature at %v: not the pinned version", path)
	}
	v, ok := c.at(name, number)
	switch {
	case !ok:
		c.refuse(w, Fault{Status: http.StatusNotFound, Code: "KeyNotFound"})
	case operation == "get":
		c.describe(w, name, number)
	case v.Disabled:
		c.refuse(w, Fault{Status: http.StatusForbidden, Code: "KeyDisabled"})
	default:
		c.sign(w, v, body, f)
	}
}

func (c *azure) describe(w http.ResponseWriter, name string, number int) {
	v, _ := c.at(name, number)
	key := jwk(c.t, v.Key.Public())
	key["kid"] = "https://" + azureHost + "/keys/" + name + "/" + azureVersion(number)
	_ = json.NewEncoder(w).Encode(map[string]any{"key": key, "attributes": map[string]any{"enabled": !v.Disabled}}) // the client may have gone
}

// create makes a new version of a key that there may be already, as a vault does.
func (c *azure) create(w http.ResponseWriter, name string, body []byte) {
	var in struct {
		Kty, Crv string
		Size     int      `json:"key_size"`
		Ops      []string `json:"key_ops"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		c.t.Error(err)
	}
	if len(in.Ops) == 0 {
		c.t.Error("a key for every operation: sign and verify are enough")
	}
	a := map[string]kms.Algorithm{
		"EC-HSM P-256": kms.ECDSAP256, "EC-HSM P-384": kms.ECDSAP384, "EC-HSM P-521": kms.ECDSAP521,
		"RSA-HSM 2048": kms.RSA2048, "RSA-HSM 3072": kms.RSA3072, "RSA-HSM 4096": kms.RSA4096,
	}
	kind := in.Kty + " " + in.Crv
	if in.Size > 0 {
		kind += strconv.Itoa(in.Size)
	}
	if a[kind] == "" {
		c.refuse(w, Fault{Status: http.StatusBadRequest, Code: "BadParameter"})
		return
	}
	c.describe(w, name, c.Add(name, Key(c.t, a[kind])))
}

func (c *azure) sign(w http.ResponseWriter, v Version, body []byte, f Fault) {
	var in struct{ Alg, Value string }
	if err := json.Unmarshal(body, &in); err != nil {
		c.t.Error(err)
	}
	digest, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil {
		c.t.Error(err)
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[in.Alg[2:]]
	sig, err := c.signature(f, v.Key, digest, pssOr(in.Alg[0] == 'P', hash))
	if err != nil {
		c.t.Error(err)
	}
	if strings.HasPrefix(in.Alg, "ES") {
		sig = rawSignature(c.t, v.Key.Public(), sig)
	}
	fmt.Fprintf(w, `{"kid":"x","value":%q}`, base64.RawURLEncoding.EncodeToString(sig))
}

// rawSignature is r‖s, each of the curve's size.
func rawSignature(t testing.TB, public crypto.PublicKey, der []byte) []byte {
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &s); err != nil {
		t.Error(err)
		return der
	}
	k, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return der
	}
	size := (k.Curve.Params().BitSize + 7) / 8
	return append(s.R.FillBytes(make([]byte, size)), s.S.FillBytes(make([]byte, size))...)
}

func jwk(t testing.TB, public crypto.PublicKey) map[string]any {
	m := map[string]any{"key_ops": []string{"sign", "verify"}}
	b64 := base64.RawURLEncoding.EncodeToString
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			t.Error(err)
		}
		size := (len(point) - 1) / 2
		m["kty"], m["crv"], m["x"], m["y"] = "EC-HSM", k.Curve.Params().Name, b64(point[1:1+size]), b64(point[1+size:])
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	}
	return m
}
