package kms_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	azureVersion = "0123456789abcdef0123456789abcdef"
	azureTenant  = "11111111-2222-3333-4444-555555555555"
)

// newAzure is a stand-in for a vault and for Entra, over TLS with real keys.
func newAzure(t *testing.T, a kms.Algorithm) *standIn {
	t.Helper()
	c := newCloud(t, a)
	host := "demo.vault.azure.net"
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, azureTenant) {
			serveEntra(c, w, r)
			return
		}
		serveVault(t, c, w, r)
	}))
	certificate, caFile := serverCertificate(t, host)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true // one handshake for 64 callers
	server.StartTLS()
	c.closing(t, server)
	return &standIn{
		cloud: c, ref: "https://" + host + "/keys/issuing", host: host, get: "get", signing: "sign",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL, CAFile: caFile},
			Getenv: environment("AZURE_TENANT_ID", azureTenant, "AZURE_CLIENT_ID", "app", "AZURE_CLIENT_SECRET", "do-not-log-me"),
		},
		codes: map[string]fault{
			"throttled": {status: 429, code: "Throttled"},
			"denied":    {status: 403, code: "Forbidden"},
			"disabled":  {status: 403, code: "KeyDisabled"},
			"deleted":   {status: 409, code: "ObjectIsDeletedButRecoverable"},
			"internal":  {status: 500, code: "InternalError"},
		},
	}
}

// serverCertificate makes a certificate for a host and this machine, and a file
// with who issued it.
func serverCertificate(t *testing.T, host string) (tls.Certificate, setting.Path) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, setting.Path(path)
}

func serveEntra(c *cloud, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	base := "https://" + r.Host + "/" + azureTenant
	if strings.HasSuffix(r.URL.Path, "openid-configuration") {
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q}`, base+"/v2.0", base+"/oauth2/v2.0/authorize", base+"/oauth2/v2.0/token")
		return
	}
	f, ok := c.begin(r, "token")
	switch {
	case !ok:
	case f.status != 0:
		w.WriteHeader(f.status)
		fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Trace"}`)
	default:
		claims := base64.RawURLEncoding.EncodeToString([]byte(`{"tid":"` + azureTenant + `","oid":"the-object","appid":"app"}`))
		fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":3600,"access_token":"e30.%s.sig"}`, claims)
	}
}

func serveVault(t *testing.T, c *cloud, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Host != "demo.vault.azure.net" {
		t.Errorf("the vault is asked as %s", r.Host)
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+azureTenant+`", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	operation := "get"
	if strings.HasSuffix(r.URL.Path, "/sign") {
		operation = "sign"
		if !strings.HasPrefix(r.URL.Path, "/keys/issuing/"+azureVersion) {
			t.Errorf("signature at %s: not the pinned version", r.URL.Path)
		}
	}
	f, ok := c.begin(r, operation)
	if !ok {
		return
	}
	if f.status != 0 {
		w.WriteHeader(f.status)
		fmt.Fprintf(w, `{"error":{"code":%q,"message":"as the test says","innererror":{"code":"Inner%s"}}}`, f.code, f.code)
		return
	}
	if operation == "get" {
		_ = json.NewEncoder(w).Encode(map[string]any{"key": jwk(t, c.public()), "attributes": map[string]any{"enabled": c.isEnabled()}})
		return
	}
	var in struct{ Alg, Value string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		t.Error(err)
	}
	digest, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil {
		t.Error(err)
	}
	sig, err := c.sign(f, digest, azureSigns(in.Alg))
	if err != nil {
		t.Error(err)
	}
	if strings.HasPrefix(in.Alg, "ES") {
		sig = rawSignature(t, c.public(), sig)
	}
	fmt.Fprintf(w, `{"kid":"x","value":%q}`, base64.RawURLEncoding.EncodeToString(sig))
}

func azureSigns(alg string) crypto.SignerOpts {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	if alg[0] == 'P' {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// rawSignature is r‖s, each of the curve's size.
func rawSignature(t *testing.T, public crypto.PublicKey, der []byte) []byte {
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &s); err != nil {
		t.Error(err)
		return der
	}
	size := (public.(*ecdsa.PublicKey).Curve.Params().BitSize + 7) / 8
	return append(s.R.FillBytes(make([]byte, size)), s.S.FillBytes(make([]byte, size))...)
}

func jwk(t *testing.T, public crypto.PublicKey) map[string]any {
	m := map[string]any{"kid": "https://demo.vault.azure.net/keys/issuing/" + azureVersion, "key_ops": []string{"sign", "verify"}}
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

// TestAzureCredentialRefused: Entra's code is in the error, the secret isn't.
func TestAzureCredentialRefused(t *testing.T) {
	t.Parallel()
	s := newAzure(t, kms.ECDSAP256)
	s.always("token", fault{status: http.StatusUnauthorized})
	_, err := kms.Open(t.Context(), s.ref, s.options)
	wantError(t, err, "the credential is refused (HTTP 401 AADSTS7000215)")
}

// TestAzureUnversionedIsPinned: the stand-in fails the test for a signature by
// another version than that which Open found.
func TestAzureUnversionedIsPinned(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprint(newAzure(t, kms.ECDSAP256).open(t)); got != "https://demo.vault.azure.net/keys/issuing/"+azureVersion {
		t.Errorf("pinned to %s", got)
	}
}
