// Package identitytest runs a real OpenID Connect issuer on loopback HTTP for
// tests, and hands out tokens and principals that a real identity.Verifier has
// verified.
//
// An issuer ends with its test. RSA keys are shared by the process, so an
// issuer is cheap, but no two live issuers have the same key.
package identitytest

import (
	"crypto/rand"
	"crypto/rsa"
	"maps"
	"net/http"
	"net/http/httptest"
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

// Issuer is a running issuer. It is safe for concurrent use.
type Issuer struct {
	// URL is the issuer as its tokens write it in iss.
	URL string

	dev *devissuer.Issuer
	key *rsa.PrivateKey
}

// New starts an issuer that ends with the test. wrap may stand between it and those who
// ask it.
func New(t testing.TB, wrap ...func(http.Handler) http.Handler) *Issuer {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	i := &Issuer{URL: "http://" + server.Listener.Addr().String(), key: borrowKey(t)}
	var err error
	if i.dev, err = devissuer.New(devissuer.Options{URL: i.URL, Key: i.key}); err != nil {
		t.Fatalf("identitytest: %v", err)
	}
	server.Config.Handler = i.dev.Handler()
	for _, w := range wrap {
		server.Config.Handler = w(server.Config.Handler)
	}
	server.Start()
	t.Cleanup(server.Close)
	return i
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

// freeKeys are the process's RSA keys that no live issuer has.
var freeKeys = make(chan *rsa.PrivateKey, 256)

// borrowKey lends a key that no other live issuer has, until the test ends.
func borrowKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	var key *rsa.PrivateKey
	select {
	case key = <-freeKeys:
	default:
		var err error
		if key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatalf("identitytest: %v", err)
		}
	}
	t.Cleanup(func() {
		select {
		case freeKeys <- key:
		default: // there are plenty
		}
	})
	return key
}

// Key is the key that the issuer signs with.
func (i *Issuer) Key() *rsa.PrivateKey { return i.key }
