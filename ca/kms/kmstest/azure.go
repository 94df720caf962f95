package kmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// AzureTenant is the tenant that the stand-in's Entra gives tokens for.
const AzureTenant = "11111111-2222-3333-4444-555555555555"

// azure speaks the wire protocols of Key Vault, Managed HSM and Entra.
type azure struct {
	*Cloud

	host string // of the vault
	wrap string // the kind of key that seals, and its algorithm
}

// NewAzure is a stand-in for a vault and for Entra, over TLS. RSA keys seal.
func NewAzure(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	return newAzure(t, key, "demo.vault.azure.net", "RSA RSA-OAEP-256")
}

// newManagedHSM is a managed HSM, in which AES keys seal.
func newManagedHSM(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	return newAzure(t, key, "demo.managedhsm.azure.net", "oct-HSM A256KW")
}

func newAzure(t testing.TB, key crypto.Signer, host, wrap string) *StandIn {
	t.Helper()
	c := &azure{newCloud(t), host, wrap}
	certificate, caFile := Certificate(t, host)
	c.start(c, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	c.Add("issuing", key)
	c.Add("sealing", nil)
	c.Add("other", nil)
	keys := "https://" + host + "/keys/"
	return &StandIn{
		Cloud: c.Cloud, Ref: keys + "issuing", Pinned: keys + "issuing/" + azureVersion(1), Name: "issuing",
		Host: host, Get: "get", Sign: "sign",
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
		sealing: Sealing{
			Ref: keys + "sealing", Pinned: keys + "sealing/" + azureVersion(1), Other: keys + "other", Unseal: "unwrapkey",
			Denied: "allow it get and unwrapKey, and wrapKey to make a sealed key",
		},
	}
}

// azureVersion is the vault's name of version n: 32 hexadecimal digits.
func azureVersion(n int) string { return fmt.Sprintf("%032x", 0xa000+n) }

// Certificate makes a certificate for a host and this machine, and a file with
// who issued it.
func Certificate(t testing.TB, host string) (tls.Certificate, setting.Path) {
	t.Helper()
	certificate, file := catest.Server(t, host), filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, catest.PEM(certificate.Leaf), 0o600); err != nil {
		t.Fatal(err)
	}
	return certificate, setting.Path(file)
}

func (c *azure) operation(r *http.Request) string {
	switch {
	case strings.HasSuffix(r.URL.Path, "openid-configuration"):
		return "discovery"
	case strings.Contains(r.URL.Path, AzureTenant):
		return "token"
	case !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
		return "challenge"
	}
	switch last := path.Base(r.URL.Path); last {
	case "sign", "create", "wrapkey", "unwrapkey":
		return last
	default:
		return "get"
	}
}

func (c *azure) refuse(w http.ResponseWriter, f Fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.Status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":"as the test says","innererror":{"code":"Inner%s"}}}`, f.Code, f.Code)
}

func (c *azure) answer(q request) (any, error) {
	base := "https://" + q.Host + "/" + AzureTenant
	switch q.operation {
	case "discovery":
		return map[string]string{"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token"}, nil
	case "token":
		claims := base64.RawURLEncoding.EncodeToString([]byte(`{"tid":"` + AzureTenant + `","oid":"the-object","appid":"app"}`))
		return map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": "e30." + claims + ".sig"}, nil
	case "challenge":
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+AzureTenant+`", resource="https://`+strings.TrimPrefix(c.host, "demo.")+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), nil
	}
	if q.Host != c.host {
		c.t.Errorf("the vault is asked as %s", q.Host)
	}
	return c.key(q, strings.Split(strings.TrimPrefix(q.URL.Path, "/keys/"), "/"))
}

// key does what is asked at /keys/NAME[/VERSION][/OPERATION].
func (c *azure) key(q request, parts []string) (any, error) {
	name := parts[0]
	number := len(c.Versions(name)) // of a key without a version: the newest
	if len(parts) > 1 && parts[1] != "" {
		n, err := strconv.ParseInt(parts[1], 16, 64)
		if err != nil {
			n = 0
		}
		number = int(n) - 0xa000
	} else if q.operation != "get" {
		c.t.Errorf("%s at %v: not the pinned version", q.operation, parts)
	}
	v, ok := c.at(name, number)
	switch {
	case !ok:
		return nil, Fault{Status: http.StatusNotFound, Code: "KeyNotFound"}
	case q.operation == "get":
		return c.describe(name, number)
	case v.Disabled:
		return nil, Fault{Status: http.StatusForbidden, Code: "KeyDisabled"}
	default:
		return c.use(v, name, q)
	}
}

func (c *azure) describe(name string, number int) (any, error) {
	v, _ := c.at(name, number)
	kty, _, _ := strings.Cut(c.wrap, " ")
	key := map[string]any{"kty": kty, "key_ops": []string{"wrapKey", "unwrapKey"}}
	if v.Key != nil {
		key = jwk(c.t, v.Key.Public())
	}
	key["kid"] = "https://" + c.host + "/keys/" + name + "/" + azureVersion(number)
	return map[string]any{"key": key, "attributes": map[string]any{"enabled": !v.Disabled}}, nil
}

// use signs, wraps or unwraps. What wraps is AES-GCM, whatever the algorithm is
// called: only this service unwraps it.
func (c *azure) use(v Version, name string, q request) (any, error) {
	var in struct{ Alg, Value string }
	if err := json.Unmarshal(q.body, &in); err != nil {
		return nil, err
	}
	value, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil {
		return nil, err
	}
	switch {
	case q.operation == "sign":
		value, err = c.signature(q.fault, v.Key, value, signerOpts(in.Alg[0] == 'P', in.Alg))
		if strings.HasPrefix(in.Alg, "ES") {
			value = rawSignature(c.t, v.Key.Public(), value)
		}
	case !strings.HasSuffix(c.wrap, " "+in.Alg):
		err = fmt.Errorf("%s by %s", q.operation, in.Alg)
	case q.operation == "wrapkey":
		value = c.seal(name, value, nil)
	default:
		value, err = c.unseal(name, value, nil)
	}
	if err != nil {
		return nil, Fault{Status: http.StatusBadRequest, Code: "BadParameter"}
	}
	return map[string]string{"kid": "x", "value": base64.RawURLEncoding.EncodeToString(value)}, nil
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

// jwk is a public key as a vault describes it, whose EC keys are in hardware.
func jwk(t testing.TB, public crypto.PublicKey) map[string]any {
	text, err := jose.JSONWebKey{Key: public}.MarshalJSON()
	if err != nil {
		t.Error(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Error(err)
	}
	if m["kty"] == "EC" {
		m["kty"] = "EC-HSM"
	}
	m["key_ops"] = []string{"sign", "verify"}
	return m
}
