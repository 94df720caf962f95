package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// moment is the time of all tests here that set a clock.
var moment = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func atMoment() time.Time { return moment }

// world is the network of a test: hosts by name, and a count of what was asked.
type world struct {
	mu       sync.Mutex
	hosts    map[string]http.Handler
	requests []string
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	h := w.hosts[r.URL.Host]
	w.requests = append(w.requests, r.URL.String())
	w.mu.Unlock()
	if h == nil {
		return nil, errors.New("no such host")
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	res := rec.Result()
	res.Request = r
	return res, nil
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.requests)
}

func (w *world) serve(host string, h http.Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts == nil {
		w.hosts = map[string]http.Handler{}
	}
	w.hosts[host] = h
}

// authority is an issuer in a world.
type authority struct {
	url  string
	mu   sync.Mutex
	keys []jose.JSONWebKey
}

var rsaKeys = sync.OnceValue(func() []*rsa.PrivateKey {
	keys := make([]*rsa.PrivateKey, 2)
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil
		}
		keys[i] = k
	}
	return keys
})

func key(i int) *rsa.PrivateKey { return rsaKeys()[i] }

// found puts an issuer with one RSA key, kid "k0", into w.
func found(w *world, url, host string) *authority {
	a := &authority{url: url, keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0", Algorithm: "RS256", Use: "sig"}}}
	w.serve(host, a)
	return a
}

func (a *authority) publish(keys ...jose.JSONWebKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = keys
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.URL.Path[len(r.URL.Path)-5:] == "/keys" {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: a.keys})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"issuer": a.url, "jwks_uri": "https://" + r.URL.Host + "/keys",
		"authorization_endpoint": a.url + "/auth", "token_endpoint": a.url + "/token", "id_token_signing_alg_values_supported": []string{"RS256"}})
}

// claims is the ordinary claims of alice, with some replaced; nil takes one out.
func claims(changes map[string]any) map[string]any {
	m := map[string]any{
		"iss": "https://issuer.example", "sub": "alice", "aud": "sigstore", "email": "alice@example.com", "email_verified": true,
		"iat": moment.Add(-time.Minute).Unix(), "nbf": moment.Add(-time.Minute).Unix(), "exp": moment.Add(time.Hour).Unix(),
	}
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

func encode(tb testing.TB, v any) string {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign makes a token of any header and payload text with RS256 and k.
func sign(tb testing.TB, k *rsa.PrivateKey, header, payload string) string {
	tb.Helper()
	input := b64(header) + "." + b64(payload)
	digest := sha256.Sum256([]byte(input))
	sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	return input + "." + b64(string(sig))
}

const plainHeader = `{"alg":"RS256","kid":"k0"}`

// token is alice's, with some claims replaced.
func token(tb testing.TB, changes map[string]any) string {
	tb.Helper()
	return sign(tb, key(0), plainHeader, encode(tb, claims(changes)))
}

func emailIssuer() IssuerConfig {
	return IssuerConfig{URL: "https://issuer.example", Type: TypeEmail, Allow: "true", Audiences: []string{"sigstore"}}
}

// verifier makes one in a world with the ordinary issuer.
func verifier(tb testing.TB, issuers ...IssuerConfig) (*Verifier, *world, *authority) {
	tb.Helper()
	w := new(world)
	a := found(w, "https://issuer.example", "issuer.example")
	if issuers == nil {
		issuers = []IssuerConfig{emailIssuer()}
	}
	v, err := NewVerifier(issuers, Options{Now: atMoment, Transport: w})
	if err != nil {
		tb.Fatal(err)
	}
	return v, w, a
}

// wantFault authenticates a token that is to be refused for one of the reasons,
// and checks that the refusal is classified and holds nothing of the token.
func wantFault(t *testing.T, v *Verifier, name, token string, reasons ...fault.Reason) *fault.Error {
	t.Helper()
	p, err := v.Authenticate(t.Context(), token)
	if err == nil {
		t.Errorf("%s: accepted as %+v", name, p)
		return &fault.Error{}
	}
	if !p.IsZero() {
		t.Errorf("%s: a principal beside the error", name)
	}
	e := fault.From(err)
	for _, r := range reasons {
		if e.Reason == r {
			if len(token) > 40 && bytes.Contains([]byte(err.Error()), []byte(token[len(token)-40:])) {
				t.Errorf("%s: the error holds the token", name)
			}
			return e
		}
	}
	t.Errorf("%s: %v, want %v", name, err, reasons)
	return e
}

// ecSign makes an ES256 token.
func ecSign(tb testing.TB, k *ecdsa.PrivateKey, header, payload string) string {
	tb.Helper()
	input := b64(header) + "." + b64(payload)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return input + "." + b64(string(sig))
}

func ecKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}
