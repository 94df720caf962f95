package oidc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// moment is the time of all tests here that set a clock.
var moment = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func atMoment() time.Time { return moment }

// verifier checks the signatures of tokens as package identity does, with the
// keys of some configurations.
type verifier struct{ keys []*Keys }

func newVerifier(configs []Config, o Options) (*verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Fetched == nil {
		o.Fetched = func(Fetched) {}
	}
	if o.Places == nil {
		o.Places = NewPlaces(0)
	}
	v := new(verifier)
	for _, c := range configs {
		var f setting.Faults
		if c.Check("issuer", &f); f.Len() > 0 {
			return nil, f.Err()
		}
		k, err := NewKeys(c, o)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", c.URL, err)
		}
		v.keys = append(v.keys, k)
	}
	return v, nil
}

// Authenticate gives the token once its signature is good.
func (v *verifier) Authenticate(ctx context.Context, token string) (Token, error) {
	t, err := ParseUnverified(token)
	if err != nil {
		return Token{}, err
	}
	issuer := t.Claims.Get("iss").Literal()
	for _, k := range v.keys {
		if c := k.config; c.URL == issuer || c.Pattern != "" {
			if err := k.Verify(ctx, &t, issuer); err != nil {
				return Token{}, err
			}
			return t, nil
		}
	}
	return Token{}, errors.New("no such issuer")
}

func (v *verifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, k := range v.keys {
		wg.Go(func() { k.Run(ctx) })
	}
	wg.Wait()
	return nil
}

func (v *verifier) Status() []Status {
	var all []Status
	for _, k := range v.keys {
		if s, ok := k.Status(); ok {
			all = append(all, s)
		}
	}
	return all
}

func (v *verifier) closeIdle() { v.keys[0].fetcher.client.CloseIdleConnections() }

// clocked makes a verifier on the clock of a synctest bubble.
func clocked(t *testing.T, issuers ...Config) (*verifier, *world, *authority) {
	t.Helper()
	w := new(world)
	a := found(w, "https://issuer.example", "issuer.example")
	if issuers == nil {
		issuers = []Config{ordinary()}
	}
	v, err := newVerifier(issuers, Options{Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	return v, w, a
}

// ordinary is the configuration of the issuer that most tests have.
func ordinary() Config { return Config{URL: "https://issuer.example"} }

// fresh is a token of now, by key i under kid.
func fresh(t *testing.T, i int, kid string) string {
	t.Helper()
	now := time.Now()
	return sign(t, key(i), `{"alg":"RS256","kid":"`+kid+`"}`, encode(t, claims(map[string]any{"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()})))
}

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
	down bool
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

func (a *authority) setDown(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		http.Error(w, "down", http.StatusBadGateway)
		return
	}
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

// wantFault authenticates a token that is to be refused for one of the reasons,
// and checks that the refusal is classified and holds nothing of the token.
func wantFault(t *testing.T, v *verifier, name, token string, reasons ...fault.Reason) *fault.Error {
	t.Helper()
	p, err := v.Authenticate(t.Context(), token)
	if err == nil {
		t.Errorf("%s: accepted as %+v", name, p)
		return &fault.Error{}
	}
	if p.Signed != "" {
		t.Errorf("%s: a token beside the error", name)
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

func ecKeyPair(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}
