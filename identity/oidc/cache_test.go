package oidc

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestUnreachableIssuerKeepsItsWarmKeys(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		other := ordinary()
		other.URL = "https://other.example"
		v, w, a := clocked(t, ordinary(), other)
		found(w, other.URL, "other.example")

		a.setDown(true)
		e := wantFault(t, v, "cold", fresh(t, 0, "k0"), fault.IssuerUnavailable)
		if e.Kind() != fault.Unavailable || e.RetryAfter <= 0 || e.RetryAfter > failureGap || e.Cause == nil {
			t.Errorf("%v, retry after %s, cause %v", e.Kind(), e.RetryAfter, e.Cause)
		}
		for range 100 {
			wantFault(t, v, "still cold", fresh(t, 0, "k0"), fault.IssuerUnavailable)
		}
		if w.count() != 1 {
			t.Errorf("%d requests within the interval, want 1", w.count())
		}
		now := time.Now()
		if _, err := v.Authenticate(t.Context(), sign(t, key(0), plainHeader, encode(t, claims(map[string]any{"iss": other.URL, "iat": now.Unix(), "nbf": nil, "exp": now.Add(time.Hour).Unix()})))); err != nil {
			t.Errorf("another issuer is affected: %v", err)
		}

		a.setDown(false)
		time.Sleep(failureGap)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatalf("after it is back: %v", err)
		}
		a.setDown(true)
		time.Sleep(defaultKeysAge - time.Second)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Errorf("warm, up to the stated age: %v", err)
		}
		synctest.Wait() // the refresh that the old age caused
		wantFault(t, v, "unknown key while the issuer is down", fresh(t, 1, "k1"), fault.IssuerUnavailable)
		time.Sleep(time.Second)
		wantFault(t, v, "past the stated age", fresh(t, 0, "k0"), fault.IssuerUnavailable)
		if s := v.Status()[0]; s.Ready || s.Err == nil || s.KeysAge < defaultKeysAge {
			t.Errorf("status %+v", s)
		}
	})
}

func TestUnknownKeysCostFewRequests(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, a := clocked(t)
		v.keys[0].exact.Places.Resize(1000 * partOfIssuer)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		before := w.count()
		a.publish(jose.JSONWebKey{Key: key(1).Public(), KeyID: "k1"})
		shape := fresh(t, 0, "nope") // whose signature nothing can check
		tokens := make([]string, 1000)
		for i := range tokens {
			tokens[i] = strings.Replace(shape, b64(`{"alg":"RS256","kid":"nope"}`), b64(fmt.Sprintf(`{"alg":"RS256","kid":"unknown-%d"}`, i)), 1)
		}
		var wg sync.WaitGroup
		for _, tok := range tokens {
			wg.Go(func() { wantFault(t, v, "unknown kid", tok, fault.TokenSignature) })
		}
		wg.Wait()
		if got := w.count() - before; got != 1 {
			t.Errorf("%d requests for 1,000 unknown kids at once, want 1", got)
		}
		if _, err := v.Authenticate(t.Context(), fresh(t, 1, "k1")); err != nil {
			t.Errorf("the new key: %v", err)
		}
		wantFault(t, v, "the removed key", fresh(t, 0, "k0"), fault.TokenSignature)
		for range 60 { // a minute of unknown kids
			wantFault(t, v, "unknown kid", shape, fault.TokenSignature)
			time.Sleep(time.Second)
		}
		if got := w.count() - before; got > 1+61 {
			t.Errorf("%d requests in a minute, want at most one a second", got)
		}
		forged := fresh(t, 0, "k1")
		before = w.count()
		for range 100 { // a bad signature of a known key asks nobody
			wantFault(t, v, "bad signature", forged, fault.TokenSignature)
		}

		if got := w.count() - before; got != 0 {
			t.Errorf("%d requests for bad signatures", got)
		}

		// Without Run too, a removed key stops working within defaultFresh of its removal.
		a.publish(jose.JSONWebKey{Key: key(0).Public(), KeyID: "k0"})
		time.Sleep(defaultFresh)
		_, _ = v.Authenticate(t.Context(), fresh(t, 1, "k1")) // serves, and causes a refresh
		synctest.Wait()
		wantFault(t, v, "the key that is removed again", fresh(t, 1, "k1"), fault.TokenSignature)
	})
}

func TestWaitingForKeysEndsWithTheRequest(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, a := clocked(t)
		w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second)
			a.ServeHTTP(rw, r)
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := v.Authenticate(ctx, fresh(t, 0, "k0"))
		if fault.From(err).Reason != fault.DeadlineReached || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		synctest.Wait()
		time.Sleep(fetchTimeout) // the fetch goes on for others, but not for longer than this
		synctest.Wait()
	})
}

func TestRunKeepsKeysFreshAndRecovers(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		pattern := Config{Pattern: "https://*.family.example.com"}
		v, w, a := clocked(t, ordinary(), pattern)
		found(w, "https://one.family.example.com", "one.family.example.com")
		a.setDown(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		time.Sleep(10 * time.Second)
		if s := v.Status(); len(s) != 1 || s[0].Ready || s[0].Err == nil || s[0].Name != "https://issuer.example" {
			t.Errorf("status while it is down: %+v", s)
		}
		a.setDown(false)
		time.Sleep(retryMost)
		if s := v.Status()[0]; !s.Ready || s.Err != nil {
			t.Errorf("status after it is back: %+v", s)
		}
		before := w.count()
		if _, err := v.Authenticate(ctx, fresh(t, 0, "k0")); err != nil {
			t.Error(err)
		}
		now := time.Now()
		payload := encode(t, claims(map[string]any{"iss": "https://one.family.example.com", "iat": now.Unix(), "nbf": nil, "exp": now.Add(24 * time.Hour).Unix()}))
		if _, err := v.Authenticate(ctx, sign(t, key(0), plainHeader, payload)); err != nil {
			t.Error(err)
		}
		if got := w.count() - before; got != 2 {
			t.Errorf("%d requests, want 2: warm keys are not fetched again, a new issuer is discovered", got)
		}
		for range 6 {
			time.Sleep(defaultFresh)
			if s := v.Status()[0]; s.KeysAge > defaultFresh {
				t.Errorf("keys are %s old", s.KeysAge)
			}
		}
		time.Sleep(issuerIdle)
		synctest.Wait()
		if n := len(v.keys[1].pattern.caches); n != 0 {
			t.Errorf("%d idle issuers are kept", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// clientOfNetwork is one of many clients.
func clientOfNetwork(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 32)
}

func TestPatternKeysAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPatternKeys(time.Now, func(issuer string) *cache { return &cache{issuer: issuer} })
		warm, err := p.cache("warm", clientOfNetwork(0))
		if err != nil {
			t.Fatal(err)
		}
		warm.keys.Store(&keySet{jwks{fresh: defaultFresh}, time.Now()})
		refused := 0
		for i := range 2 * maxIssuers { // of ever other clients
			if _, err := p.cache(fmt.Sprint(i), clientOfNetwork(1+i)); err != nil {
				if e := fault.From(err); e.Reason != fault.IssuerUnavailable || e.RetryAfter == 0 {
					t.Fatal(err)
				}
				refused++
			}
			if i >= 500 {
				time.Sleep(time.Second / newIssuerRate)
			}
		}
		if len(p.caches) != maxUnproven || refused < 250 || p.caches["warm"] != warm {
			t.Errorf("%d issuers, %d refused, the warm one kept: %v", len(p.caches), refused, p.caches["warm"] == warm)
		}
	})
}

// TestMadeUpIssuersOfAPatternCostTheirClient: a client that makes up issuers, as
// fast as it can, keeps neither new issuers out that others name nor those that
// verified a token days ago.
func TestMadeUpIssuersOfAPatternCostTheirClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPatternKeys(time.Now, func(issuer string) *cache { return &cache{issuer: issuer} })
		known, err := p.cache("real", clientOfNetwork(1))
		if err != nil {
			t.Fatal(err)
		}
		known.proven.Store(true)
		attacker := clientOfNetwork(0)
		const days = 3
		for n := range days * 24 * 6 { // every ten minutes, with a burst each time
			time.Sleep(10 * time.Minute)
			var last error
			for i := range 2 * clientBurst {
				_, last = p.cache(fmt.Sprintf("made up %d %d", n, i), attacker)
			}
			if e := fault.From(last); e == nil || e.Reason != fault.RateExceeded || e.RetryAfter <= 0 {
				t.Fatalf("the flood: %v", last)
			}
			if n%10 != 0 {
				continue
			}
			p.active() // what is idle is dropped
			if _, err := p.cache(fmt.Sprintf("new %d", n), clientOfNetwork(2)); err != nil {
				t.Fatalf("another client's new issuer: %v", err)
			}
		}
		if p.caches["real"] != nil {
			t.Error("the idle issuer's keys are kept for days")
		}
		// Even the attacker's own address can use it: it is known.
		if c, err := p.cache("real", attacker); err != nil || !c.proven.Load() {
			t.Errorf("the issuer that verified a token days ago: %v", err)
		}
		if len(p.caches) > maxIssuers || p.clients.Len() > maxClients || p.proven.Len() > maxProven {
			t.Errorf("%d issuers, %d clients, %d proven", len(p.caches), p.clients.Len(), p.proven.Len())
		}
	})
}

// TestProvenIssuersAreDroppedLast, though they have no keys at the moment.
func TestProvenIssuersAreDroppedLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPatternKeys(time.Now, func(issuer string) *cache { return &cache{issuer: issuer} })
		known, err := p.cache("real", clientOfNetwork(0))
		if err != nil {
			t.Fatal(err)
		}
		known.proven.Store(true)
		for i := range 2 * maxIssuers {
			time.Sleep(time.Second)
			c, err := p.cache(fmt.Sprint(i), clientOfNetwork(1))
			if err != nil {
				t.Fatal(err)
			}
			c.keys.Store(&keySet{jwks{}, time.Now()})
		}
		if p.caches["real"] != known {
			t.Error("an issuer that verified a token was dropped for one that didn't")
		}
	})
}

func TestKeysThatAreNotUsed(t *testing.T) {
	t.Parallel()
	// Only its size is looked at, so any modulus of 1024 bits will do.
	small := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key  jose.JSONWebKey
		want int
	}{
		"RSA":               {jose.JSONWebKey{Key: key(0).Public()}, 6},
		"RSA for one":       {jose.JSONWebKey{Key: key(0).Public(), Algorithm: "PS384"}, 1},
		"RSA to encrypt":    {jose.JSONWebKey{Key: key(0).Public(), Use: "enc"}, 0},
		"RSA, an EC name":   {jose.JSONWebKey{Key: key(0).Public(), Algorithm: "ES256"}, 0},
		"RSA, 1024 bits":    {jose.JSONWebKey{Key: small}, 0},
		"RSA, private":      {jose.JSONWebKey{Key: key(0)}, 0},
		"symmetric":         {jose.JSONWebKey{Key: []byte("secret"), Algorithm: "HS256"}, 0},
		"P-224":             {jose.JSONWebKey{Key: p224.Public()}, 0},
		"P-256":             {jose.JSONWebKey{Key: ecKeyPair(t).Public()}, 1},
		"P-256 for another": {jose.JSONWebKey{Key: ecKeyPair(t).Public(), Algorithm: "ES384"}, 0},
		"Ed25519":           {jose.JSONWebKey{Key: pub, Use: "sig"}, 1},
	} {
		text, err := json.Marshal(c.key)
		if err != nil { // go-jose doesn't write P-224
			text = []byte(`{"kty":"EC","crv":"P-224","x":"AA","y":"AA"}`)
		}
		if k, err := parseJWK(text); len(k.algorithms) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %v, %v, want %d", name, k.algorithms, err, c.want)
		}
	}
	good := encode(t, jose.JSONWebKey{Key: key(0).Public(), KeyID: "k0"})
	if keys, err := parseJWKS([]byte(`{"keys":[{"kty":"new"},{"kty":"oct","k":"AA"},5,`+good+`]}`), 0); err != nil || len(keys.keys) != 1 || len(keys.passedOver) != 3 {
		t.Errorf("beside unknown ones: %v, %v", keys, err)
	}
	for _, doc := range []string{``, `[]`, `{}`, `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AA"}]}`, `{"keys":[` + strings.TrimSuffix(strings.Repeat(good+",", maxKeys+1), ",") + `]}`} {
		if keys, err := parseJWKS([]byte(doc), 0); err == nil {
			t.Errorf("%.40s: %d keys", doc, len(keys.keys))
		}
	}
}

// certificateFile is a server's certificate in a file.
func certificateFile(t *testing.T, s *httptest.Server) setting.Path {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Path(path)
}

// secure serves an issuer over real TLS and gives the configuration that trusts it.
func secure(t *testing.T, h func(self string) http.Handler) (Config, *httptest.Server) {
	t.Helper()
	var handler http.Handler
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(s.Close)
	handler = h(s.URL)
	c := ordinary()
	c.URL, c.CAFile, c.AllowNetworks = s.URL, certificateFile(t, s), []string{"127.0.0.0/8"}
	return c, s
}

func TestHostileIssuersOverTLS(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect to another origin was followed") }))
	t.Cleanup(elsewhere.Close)
	var bomb bytes.Buffer // 16 MiB in a few kilobytes
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 16*maxBody)); err != nil || z.Close() != nil {
		t.Fatal("no bomb")
	}
	document := func(self, jwks string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": self, "jwks_uri": jwks, "authorization_endpoint": self, "token_endpoint": self})
		}
	}
	mux := func(self string, keys http.HandlerFunc) http.Handler {
		m := http.NewServeMux()
		m.Handle("/.well-known/openid-configuration", document(self, self+"/keys"))
		m.Handle("/keys", keys)
		return m
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	keys := func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0"}}})
	}
	for name, c := range map[string]struct {
		handler func(self string) http.Handler
		cause   string // "" for an issuer that works
	}{
		"good": {func(self string) http.Handler { return mux(self, keys) }, ""},
		"redirect on its origin": {func(self string) http.Handler {
			m := http.NewServeMux()
			m.Handle("/", mux(self, redirect(self+"/moved")))
			m.HandleFunc("/moved", keys)
			return m
		}, ""},
		"redirect elsewhere": {func(self string) http.Handler { return mux(self, redirect(elsewhere.URL)) }, "another origin"},
		"redirect to http":   {func(self string) http.Handler { return mux(self, redirect(strings.Replace(self, "https", "http", 1))) }, "another origin"},
		"redirect with a user": {func(self string) http.Handler {
			return mux(self, redirect(strings.Replace(self, "https://", "https://u@", 1)))
		}, "another origin"},
		"redirect loop": {func(self string) http.Handler { return mux(self, redirect(self+"/keys")) }, "too many redirects"},
		"more than 1 MiB": {func(self string) http.Handler {
			return mux(self, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxBody+1)) })
		}, "longer than"},
		"gzip bomb": {func(self string) http.Handler {
			return mux(self, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				_, _ = w.Write(bomb.Bytes())
			})
		}, "longer than"},
		"keys over http": {func(self string) http.Handler { return document(self, strings.Replace(self, "https", "http", 1)) }, "jwks_uri is not https"},
		"keys in a file": {func(self string) http.Handler { return document(self, "file:///etc/passwd") }, "jwks_uri is not"},
		"no jwks_uri":    {func(self string) http.Handler { return document(self, "") }, "jwks_uri is not"},
		"another issuer": {func(self string) http.Handler { return document("https://evil.example", self+"/keys") }, "issuer"},
		"not found":      {func(string) http.Handler { return http.NotFoundHandler() }, "404"},
		"keys not found": {func(self string) http.Handler { return mux(self, http.NotFound) }, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, _ := secure(t, c.handler)
			v, err := newVerifier([]Config{config}, Options{Now: atMoment})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(v.closeIdle)
			tok := token(t, map[string]any{"iss": config.URL})
			if c.cause == "" {
				if _, err := v.Authenticate(t.Context(), tok); err != nil {
					t.Error(err)
				}
				return
			}
			e := wantFault(t, v, name, tok, fault.IssuerUnavailable)
			if e.Cause == nil || !strings.Contains(e.Cause.Error(), c.cause) || len(e.Cause.Error()) > 400 {
				t.Errorf("cause %v, want %q", e.Cause, c.cause)
			}
			if strings.Contains(e.Public, e.Cause.Error()) {
				t.Errorf("the cause is in the public text %q", e.Public)
			}
		})
	}

	t.Run("wrong CA", func(t *testing.T) {
		t.Parallel()
		config, _ := secure(t, func(self string) http.Handler { return mux(self, keys) })
		config.CAFile = ""
		v, err := newVerifier([]Config{config}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.closeIdle)
		e := wantFault(t, v, "wrong CA", token(t, map[string]any{"iss": config.URL}), fault.IssuerUnavailable)
		if e.Cause == nil || !strings.Contains(e.Cause.Error(), "certificate") {
			t.Errorf("cause %v", e.Cause)
		}
	})
	for name, content := range map[string]string{"missing": "", "not PEM": "x"} {
		config := ordinary()
		config.CAFile = setting.Path(filepath.Join(t.TempDir(), "ca.pem"))
		if content != "" {
			if err := os.WriteFile(string(config.CAFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := newVerifier([]Config{config}, Options{}); err == nil || !strings.Contains(err.Error(), "https://issuer.example") {
			t.Errorf("%s CA file: %v", name, err)
		}
	}
}

func TestLoopbackIssuerOverHTTP(t *testing.T) {
	t.Parallel()
	var self string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0"}}})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": self, "jwks_uri": self + "/keys"})
	}))
	t.Cleanup(s.Close)
	self = s.URL
	c := ordinary()
	c.URL, c.AllowInsecureLoopback = self, true
	v, err := newVerifier([]Config{c}, Options{Now: atMoment})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.closeIdle)
	if _, err := v.Authenticate(t.Context(), token(t, map[string]any{"iss": self})); err != nil {
		t.Error(err)
	}
}

func TestTruncatedErrorKeepsItsCause(t *testing.T) {
	t.Parallel()
	long := errors.New(strings.Repeat("é\xff", 1000))
	if err := truncated(long); !errors.Is(err, long) || len(err.Error()) > 310 {
		t.Errorf("%d bytes", len(err.Error()))
	}
}
