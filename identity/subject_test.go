package identity

import (
	"reflect"
	"testing"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

func TestPrincipalOfAPerson(t *testing.T) {
	t.Parallel()
	v, _, _ := verifier(t)
	p, err := v.Authenticate(t.Context(), token(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if p.IsZero() || p.Issuer() != "https://issuer.example" || p.Subject() != "alice" || p.Audience() != "sigstore" || p.IssuerType() != "email" ||
		p.SAN() != (SAN{Email, "alice@example.com"}) || p.Extensions() != (extension.Set{Issuer: "https://issuer.example", TokenSubject: "alice"}) {
		t.Errorf("%+v", p)
	}
	if got := p.Challenges(); !reflect.DeepEqual(got, []string{"alice@example.com", "alice"}) {
		t.Errorf("challenges %q", got)
	}
	p.Challenges()[0] = "changed"
	if p.Challenges()[0] != "alice@example.com" {
		t.Error("the principal's challenges can be changed from outside")
	}
	if !(Principal{}).IsZero() {
		t.Error("the zero principal is somebody")
	}
	for k, want := range map[SANKind]string{Email: "email", URI: "uri", Username: "username", 0: ""} {
		if k.String() != want {
			t.Errorf("%d is %q", k, k.String())
		}
	}
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	v, _, _ := verifier(t, IssuerConfig{URL: "https://issuer.example", Type: TypeUsername, Allow: "true", SubjectDomain: "example.com", Audiences: []string{"sigstore"}})
	for name, c := range map[string]struct {
		email any
		want  []string
	}{
		"an email whatever the type": {"alice@example.com", []string{"alice@example.com", "alice"}},
		"no email":                   {nil, []string{"alice"}},
		"an empty email":             {"", []string{"alice"}},
		"an email of a wrong type":   {7, []string{"alice"}},
	} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"email": c.email}))
		if err != nil || !reflect.DeepEqual(p.Challenges(), c.want) {
			t.Errorf("%s: %q, %v; want %q", name, p.Challenges(), err, c.want)
		}
	}
}

func TestIssuerClaim(t *testing.T) {
	t.Parallel()
	for path, c := range map[string]struct {
		value any
		want  string // "" for refused
		claim string
	}{
		"$.federated_claims.connector_id":       {map[string]any{"connector_id": "https://github.com/login/oauth"}, "https://github.com/login/oauth", ""},
		"$['federated_claims']['connector_id']": {map[string]any{"connector_id": "x"}, "x", ""},
		"$['federated_claims'].connector_id":    {map[string]any{"connector_id": ""}, "", "federated_claims.connector_id"},
		"$.federated_claims['a.b/c'].d":         {map[string]any{"a.b/c": map[string]any{"d": "y"}}, "y", ""},
		"$.federated_claims.user_id":            {map[string]any{"connector_id": "x"}, "", "federated_claims.user_id"},
		"$.federated_claims":                    {map[string]any{"connector_id": "x"}, "", "federated_claims"},
		"$.federated_claims.x.y":                {"string", "", "federated_claims.x.y"},
	} {
		config := emailIssuer()
		config.IssuerClaim = path
		v, _, _ := verifier(t, config)
		tok := token(t, map[string]any{"federated_claims": c.value})
		if c.want == "" {
			if e := wantFault(t, v, path, tok, fault.ClaimMissing, fault.ClaimInvalid); e.Metadata["claim"] != c.claim {
				t.Errorf("%s: %v", path, e)
			}
			continue
		}
		p, err := v.Authenticate(t.Context(), tok)
		if err != nil || p.Issuer() != c.want || p.Extensions().Issuer != c.want {
			t.Errorf("%s: %q %q, %v; want %q", path, p.Issuer(), p.Extensions().Issuer, err, c.want)
		}
	}
	for _, path := range []string{"$", "", "a", "$a", "$.", "$..a", "$.a.", "$.a b", "$['a'", "$['']", "$[0]", "$.a[*]", "$['a\\'b']", "$.*"} {
		if steps, err := parseClaimPath(path); err == nil {
			t.Errorf("%q is read as %q", path, steps)
		}
	}
}

// TestSchemeOfACIName gives a rule of an operator's own, in which a claim may say
// where the platform is, other schemes than https, and none.
func TestSchemeOfACIName(t *testing.T) {
	t.Parallel()
	v, _, _ := verifier(t, IssuerConfig{URL: "https://issuer.example", Type: TypeCI, Allow: "true", Audiences: []string{"sigstore"}, InlinePreset: &presets.Preset{
		Name: "own", SAN: "{platform}/{account_name}/{pipeline_name}:{account_id}/{pipeline_id}",
		Variables: map[string][]presets.Case{"platform": {{Claim: "platform_url", Value: "{platform_url}"}, {Value: "https://g.codefresh.io"}}},
	}})
	for platform, want := range map[string]string{
		"":                      "https://g.codefresh.io/acme/build:a1/p1",
		"https://ci.example":    "https://ci.example/acme/build:a1/p1",
		"http://ci.example":     "",
		"HTTPS://ci.example":    "",
		"spiffe://example.org":  "",
		"javascript://example":  "",
		"//ci.example":          "",
		"ci.example":            "",
		"https://u@ci.example":  "",
		"https://ci.example/..": "",
	} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{
			"platform_url": platform, "account_name": "acme", "account_id": "a1", "pipeline_name": "build", "pipeline_id": "p1",
		}))
		switch e := fault.From(err); {
		case want == "" && (e == nil || e.Reason != fault.ClaimInvalid):
			t.Errorf("%q: %+v, %v", platform, p.SAN(), err)
		case want != "" && (err != nil || p.SAN() != (SAN{URI, want})):
			t.Errorf("%q: %+v, %v; want %s", platform, p.SAN(), err, want)
		}
	}
}
