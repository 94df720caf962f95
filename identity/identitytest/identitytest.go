// Package identitytest runs a real OpenID Connect issuer on loopback HTTP for
// tests, and hands out tokens and principals that a real identity.Verifier has
// verified. Its faults are told at run time: an endpoint that is down or
// never answers, and tokens forged byte by byte (see [Issuer.Sign]).
//
// An issuer ends with its test. RSA keys are shared by the process, so an
// issuer is cheap, but no two live issuers have the same key.
package identitytest

import (
	"crypto/rsa"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/devissuer"
)

// The defaults of the tokens that Token and Principal make.
const (
	Email    = "alice@example.com"
	Subject  = "alice"
	Audience = devissuer.DefaultAudience
)

// The paths that Break and Requests take.
const (
	Discovery = "/.well-known/openid-configuration"
	Keys      = "/keys"
)

// Issuer is a running issuer. It is safe for concurrent use.
type Issuer struct {
	// URL is the issuer as its tokens write it in iss.
	URL string

	dev  *devissuer.Issuer
	key  *rsa.PrivateKey
	done chan struct{} // closed when the test ends

	mu       sync.Mutex
	broken   map[string]http.Handler
	requests map[string]int
}

// New starts an issuer that ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	i := &Issuer{
		URL: "http://" + server.Listener.Addr().String(), key: borrowKey(t),
		done: make(chan struct{}), broken: make(map[string]http.Handler), requests: make(map[string]int),
	}
	var err error
	if i.dev, err = devissuer.New(devissuer.Options{URL: i.URL, Key: i.key}); err != nil {
		t.Fatalf("identitytest: %v", err)
	}
	server.Config.Handler = i.handler()
	server.Start()
	t.Cleanup(func() {
		close(i.done)
		server.Close()
	})
	return i
}

// handler counts the requests, and gives the broken paths to what broke them.
func (i *Issuer) handler() http.Handler {
	next := i.dev.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.requests[r.URL.Path]++
		broken := i.broken[r.URL.Path]
		i.mu.Unlock()
		if broken != nil {
			broken.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Token makes a token: Email, Subject and Audience unless the claims say
// otherwise, and what devissuer.Issuer.Token fills in. A nil value leaves a
// claim out.
func (i *Issuer) Token(t testing.TB, claims map[string]any) string {
	t.Helper()
	full := map[string]any{"email": Email, "sub": Subject, "aud": Audience}
	maps.Copy(full, claims)
	token, err := i.dev.Token(full)
	if err != nil {
		t.Fatalf("identitytest: %v", err)
	}
	return token
}

// Config is the issuer's configuration for identity.NewVerifier, of type email.
func (i *Issuer) Config() identity.IssuerConfig {
	return identity.IssuerConfig{URL: i.URL, Audiences: []string{Audience}, Type: identity.TypeEmail, Allow: "true", AllowInsecureLoopback: true}
}

// Verifier makes a verifier that trusts the issuer, as Config says or, when any
// are given, as the configurations say.
func (i *Issuer) Verifier(t testing.TB, configs ...identity.IssuerConfig) *identity.Verifier {
	t.Helper()
	if len(configs) == 0 {
		configs = []identity.IssuerConfig{i.Config()}
	}
	v, err := identity.NewVerifier(configs, identity.Options{})
	if err != nil {
		t.Fatalf("identitytest: %v", err)
	}
	return v
}

// PrincipalAs is who a real verifier says that Token's token speaks of, with the issuer
// configured so.
func (i *Issuer) PrincipalAs(t testing.TB, config identity.IssuerConfig, claims map[string]any) identity.Principal {
	t.Helper()
	who, err := i.Verifier(t, config).Authenticate(t.Context(), i.Token(t, claims))
	if err != nil {
		t.Fatalf("identitytest: a genuine token was refused: %v", err)
	}
	return who
}

// Principal starts an issuer, and is who a real verifier says that its token
// with the claims speaks of.
func Principal(t testing.TB, claims map[string]any) identity.Principal {
	t.Helper()
	i := New(t)
	return i.PrincipalAs(t, i.Config(), claims)
}

// keyPool lends the process's RSA keys to issuers.
var keyPool struct {
	sync.Mutex
	free []*rsa.PrivateKey
}

// borrowKey lends a key that no other live issuer has, until the test ends.
func borrowKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	var key *rsa.PrivateKey
	keyPool.Lock()
	if last := len(keyPool.free) - 1; last >= 0 {
		key, keyPool.free = keyPool.free[last], keyPool.free[:last]
	}
	keyPool.Unlock()
	if key == nil {
		var err error
		if key, err = devissuer.GenerateKey(); err != nil {
			t.Fatalf("identitytest: %v", err)
		}
	}
	t.Cleanup(func() {
		keyPool.Lock()
		defer keyPool.Unlock()
		keyPool.free = append(keyPool.free, key)
	})
	return key
}

// Break makes the handler answer for a path, such as Keys or Discovery, in the
// issuer's place. A nil handler mends it.
func (i *Issuer) Break(path string, handler http.Handler) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if handler == nil {
		delete(i.broken, path)
		return
	}
	i.broken[path] = handler
}

// Requests is how often a path was asked for, broken or not.
func (i *Issuer) Requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[path]
}

// TotalRequests is how often any path was asked for.
func (i *Issuer) TotalRequests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	total := 0
	for _, n := range i.requests {
		total += n
	}
	return total
}

// Key is the key that the issuer signs with.
func (i *Issuer) Key() *rsa.PrivateKey { return i.key }

// Status answers with the status and no body worth reading.
func Status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken by a test", code) })
}

// Hang takes the request and never answers, until the client or the test ends.
func (i *Issuer) Hang() http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-i.done:
		}
	})
}
