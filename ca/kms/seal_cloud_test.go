package kms_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// What the stand-ins for keys that seal are made of.

const (
	azureTenant    = kmstest.AzureTenant
	gcpRing        = kmstest.GCPRing
	gcpToken       = kmstest.GCPToken
	vaultTestToken = kmstest.VaultToken
)

var (
	environment       = kmstest.Environment
	serverCertificate = kmstest.Certificate
	gcpSum            = kmstest.GCPSum
)

// fault is what a stand-in does with a request in place of answering it.
type fault struct {
	hang    bool
	slow    time.Duration
	drop    bool   // close the connection
	status  int    // answer with this status and code
	code    string // the vendor's own error code
	other   bool   // sign with another key
	corrupt bool   // break the signature
}

// cloud is what the stand-ins have in common: one key, real signatures, faults
// on demand, and a count of what was asked.
type cloud struct {
	algorithm kms.Algorithm

	mu      sync.Mutex
	key     crypto.Signer
	enabled bool
	fault   func(operation string, call int) fault // nil for none
	calls   map[string]int
	done    chan struct{} // closed when the test ends: what hangs goes on
}

func newCloud(t *testing.T, a kms.Algorithm) *cloud {
	t.Helper()
	return &cloud{algorithm: a, key: kmstest.Key(t, a), enabled: true, calls: make(map[string]int), done: make(chan struct{})}
}

// closing ends what hangs, and then the server, when the test ends.
func (c *cloud) closing(t *testing.T, server *httptest.Server) {
	t.Cleanup(func() {
		close(c.done)
		server.Close()
	})
}

// breaks sets what goes wrong from now on.
func (c *cloud) breaks(f func(operation string, call int) fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// always breaks one operation, every time.
func (c *cloud) always(operation string, f fault) {
	c.breaks(func(asked string, _ int) fault {
		if asked == operation {
			return f
		}
		return fault{}
	})
}

func (c *cloud) count(operation string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[operation]
}

// begin counts a call and does the fault's waiting; false when there is no answer.
func (c *cloud) begin(r *http.Request, operation string) (fault, bool) {
	c.mu.Lock()
	c.calls[operation]++
	var f fault
	if c.fault != nil {
		f = c.fault(operation, c.calls[operation])
	}
	c.mu.Unlock()
	switch {
	case f.hang:
		select {
		case <-r.Context().Done():
		case <-c.done:
		}
		return f, false
	case f.slow > 0:
		select {
		case <-time.After(f.slow):
		case <-r.Context().Done():
		case <-c.done:
		}
	case f.drop:
		panic(http.ErrAbortHandler) // the way to close a connection, HTTP/2's too
	}
	return f, true
}

func (c *cloud) public() crypto.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key.Public()
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

// gcpRefuse is an error in the form of Google's REST APIs: AIP-193.
func gcpRefuse(w http.ResponseWriter, err error) {
	code := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403,
		codes.NotFound: 404, codes.AlreadyExists: 409, codes.ResourceExhausted: 429, codes.Unavailable: 503,
	}[status.Code(err)]
	if code == 0 {
		code = 500
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": status.Convert(err).Message(), "status": status.Code(err).String()}})
}

func answerVault(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func refuseVault(w http.ResponseWriter, status int, texts ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, texts...)})
}
