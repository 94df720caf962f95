package identity

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestIssuersThatAreNoURLToFetch: an issuer may be any text where its keys come from
// a configured place, and nothing but that place is asked.
func TestIssuersThatAreNoURLToFetch(t *testing.T) {
	t.Parallel()
	keys := encode(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0"}}})
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"accounts.google.com", "http://adfs.example.com/adfs/services/trust", "https://issuer.example:443", "https://Issuer.Example/Realm",
		"urn:example:issuer", "issuer",
	} {
		for from, place := range map[string]func(*IssuerConfig){
			"a file": func(c *IssuerConfig) { c.JWKSFile = setting.Path(file) },
			"a URL":  func(c *IssuerConfig) { c.JWKSURL = "https://keys.example/jwks" },
		} {
			w := new(world)
			w.serve("keys.example", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(keys)) }))
			c := emailIssuer()
			c.URL = name
			place(&c)
			v, err := NewVerifier([]IssuerConfig{c}, Options{Now: atMoment, Transport: w})
			if err != nil {
				t.Errorf("%s, keys in %s: %v", name, from, err)
				continue
			}
			p, err := v.Authenticate(t.Context(), token(t, map[string]any{"iss": name}))
			if err != nil || p.Issuer() != name {
				t.Errorf("%s, keys in %s: %q, %v", name, from, p.Issuer(), err)
			}
			wantFault(t, v, "another spelling", token(t, map[string]any{"iss": strings.ToUpper(name)}), fault.IssuerUnknown)
			if w.count() > 1 {
				t.Errorf("%s: asked %v", name, w.requests)
			}
		}
		c := emailIssuer()
		c.URL = name
		var f setting.Faults
		if CheckIssuers("issuers", []IssuerConfig{c}, &f); f.Len() != 1 || !strings.Contains(f.Err().Error(), "issuers[0].url: must ") || !strings.Contains(f.Err().Error(), "jwks_url or jwks_file") {
			t.Errorf("%s, to be fetched: %v", name, f.Err())
		}
	}
}

// TestAliasesStandForTheirIssuer: with its keys and rules, and certificates that
// record the issuer.
func TestAliasesStandForTheirIssuer(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Aliases = []string{"issuer.example"}
	c.Allow = `principal.issuer == "https://issuer.example"`
	once := c
	once.Audiences, once.OneTime = []string{"once"}, true
	v, w, _ := verifier(t, c, once)
	for _, iss := range []string{"https://issuer.example", "issuer.example"} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"iss": iss}))
		if err != nil || p.Issuer() != c.URL || p.Extensions().Issuer != c.URL {
			t.Errorf("%s: %q, %v", iss, p.Issuer(), err)
		}
		if x := v.Explain(t.Context(), token(t, map[string]any{"iss": iss})); x.Refusal != nil || x.Set.Issuer != c.URL {
			t.Errorf("%s, explained: %+v", iss, x)
		}
	}
	wantFault(t, v, "no alias", token(t, map[string]any{"iss": "https://issuer.example/"}), fault.IssuerUnknown)
	if w.count() != 2 {
		t.Errorf("asked %v", w.requests)
	}
	// A token under either name is one token.
	if _, err := v.Authenticate(t.Context(), token(t, map[string]any{"aud": "once", "jti": "a"})); err != nil {
		t.Fatal(err)
	}
	wantFault(t, v, "used under the other name", token(t, map[string]any{"iss": "issuer.example", "aud": "once", "jti": "a"}), fault.TokenReplayed)
}

// TestAliasesMeanOneIssuer: a token can't be for two issuers by its alias.
func TestAliasesMeanOneIssuer(t *testing.T) {
	t.Parallel()
	issuer := func(url string, aliases ...string) IssuerConfig {
		c := emailIssuer()
		c.URL, c.Aliases = url, aliases
		return c
	}
	second := issuer("https://a.example")
	second.Audiences = []string{"second"}
	for want, list := range map[string][]IssuerConfig{
		"issuers[1].aliases[0]: \"https://a.example\" stands for another issuer": {issuer("https://a.example"), issuer("https://b.example", "https://a.example")},
		"issuers[1].aliases[0]: \"x\" stands for another issuer":                 {issuer("https://a.example", "x"), issuer("https://b.example", "x")},
		"issuers[1].url: is an alias of the issuer in issuers[0]":                {issuer("https://a.example", "https://b.example"), issuer("https://b.example")},
		"issuers[1].aliases: must be the same as in issuers[0]":                  {issuer("https://a.example", "x"), second},
	} {
		var f setting.Faults
		CheckIssuers("issuers", list, &f)
		if f.Len() != 1 || !strings.Contains(f.Err().Error(), want) {
			t.Errorf("%s: got %v", want, f.Err())
		}
	}
}

// TestEd25519HasTwoNamesInTheConfiguration (RFC 9864).
func TestEd25519HasTwoNamesInTheConfiguration(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"EdDSA", "Ed25519"} {
		c := emailIssuer()
		c.Algorithms = []string{name}
		v, _, _ := verifier(t, c)
		if got := v.current.Load().issuers[0].config.Algorithms; !slices.Equal(got, []string{"EdDSA"}) || c.Algorithms[0] != name {
			t.Errorf("%s: %v", name, got)
		}
	}
}
