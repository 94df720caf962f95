package identity

import (
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestConditionRemarks(t *testing.T) {
	t.Parallel()
	people := emailIssuer()
	github := IssuerConfig{URL: "https://token.actions.githubusercontent.com", Type: TypeCI, Preset: "github", Audiences: []string{"a"}, Allow: "true"}
	cluster := IssuerConfig{URL: "https://k8s.example", Type: TypeKubernetes, Audiences: []string{"a"}, Allow: "true"}
	for name, c := range map[string]struct {
		issuer IssuerConfig
		allow  string
		deny   string
		want   string // "" for no remark
	}{
		"what it sends":         {github, `claims.repository_owner == "acme" && claims.ref_protected == "true" && has(claims.environment)`, "", ""},
		"a slip":                {github, `claims.repositry_owner == "acme"`, "", `issuers[0].allow: this issuer isn't known to send the claim "repositry_owner"; did you mean repository_owner?`},
		"another vendor's":      {github, `claims.project_path == "acme"`, "", `isn't known to send the claim "project_path"`},
		"asked for":             {github, `has(claims.head_reff)`, "", "did you mean head_ref?"},
		"asked for by name":     {github, `"head_reff" in claims`, "", "did you mean head_ref?"},
		"text for a boolean":    {github, `claims.ref_protected == true`, "", `issuers[0].allow: claims.ref_protected is a string where the expression takes it for a boolean, and the two are never equal; string(claims.ref_protected)`},
		"text for a list":       {github, `"x" in claims.repository`, "", "is a string where the expression takes it for a list"},
		"text for a number":     {github, `claims.run_id in [1, 2]`, "", "takes it for a number"},
		"kubernetes":            {cluster, `claims["kubernetes.io"].namespace == "prod"`, "", ""},
		"kubernetes, a slip":    {cluster, `claims["kubernetes-io"].namespace == "prod"`, "", `"kubernetes-io"; did you mean kubernetes.io?`},
		"people have any":       {people, `claims.department == "x" && claims.flag == true && "x" in claims.groups`, "", ""},
		"deny, never sent":      {github, "true", `claims.runner_name == "runner-17"`, `deny[0].when: no issuer here is known to send the claim "runner_name", so the rule may never refuse anybody`},
		"deny, a slip":          {github, "true", `claims.repositori == "acme/x"`, "did you mean repository?"},
		"deny, kind":            {github, "true", `claims.ref_protected == false`, "deny[0].when: claims.ref_protected is a string"},
		"deny, what it sends":   {github, "true", `claims.repository == "acme/x"`, ""},
		"deny, anybody's":       {people, "true", `claims.department == "x"`, ""},
		"deny, address":         {people, "true", `principal.san == "mallory@example.com"`, "deny[0].when: compares a mail address in the case of its letters"},
		"deny, domain":          {people, "true", `principal.san.endsWith("@example.com")`, "in the case of its letters"},
		"deny, list":            {people, "true", `principal.san in ["a@example.com"]`, "in the case of its letters"},
		"deny, claim":           {people, "true", `claims.email == "a@example.com"`, "in the case of its letters"},
		"deny, claim's domain":  {people, "true", `claims.email.endsWith("example.com")`, "in the case of its letters"},
		"deny, regexp":          {people, "true", `claims.upn.matches("@example[.]com$")`, "in the case of its letters"},
		"deny, folded":          {people, "true", `principal.san.lowerAscii() == "mallory@example.com" || claims.email.lowerAscii().endsWith("@example.com")`, ""},
		"deny, folded in a set": {people, "true", `principal.san.lowerAscii() in ["a@example.com"]`, ""},
		"deny, a URI":           {github, "true", `principal.san.startsWith("https://github.com/acme/")`, ""},
	} {
		issuer := c.issuer
		issuer.Allow = c.allow
		var deny []policy.Deny
		if c.deny != "" {
			deny = []policy.Deny{{Name: "r", When: c.deny}}
		}
		var f setting.Faults
		CheckIssuers("issuers", []IssuerConfig{issuer}, &f)
		policy.Rules("deny", deny, &f)
		if err := f.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := ConditionRemarks("issuers", []IssuerConfig{issuer}, "deny", deny)
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for san, bound := range map[string]bool{"{host}/x": false, "https://{host}/x": false, "https://a.example/{x}": true, "{url}/{x}": true, "{iss}/{x}": true, "{v}/{x}": false} {
		own := IssuerConfig{URL: "https://ci.example", Type: TypeCI, Audiences: []string{"a"}, Allow: "true", InlinePreset: &presets.Preset{
			Name: "own", SAN: san, Constants: map[string]string{"url": "https://a.example"}, Variables: map[string][]presets.Case{"v": {{Value: "https://a.example"}}},
		}}
		if got := ConditionRemarks("issuers", []IssuerConfig{own}, "deny", nil); (len(got) == 0) != bound {
			t.Errorf("%s: %q", san, got)
		}
	}
}

// TestExplainShowsWhatARuleReads with kinds and values, and says what doesn't fit.
func TestExplainShowsWhatARuleReads(t *testing.T) {
	t.Parallel()
	c := emailIssuer()
	c.Allow = `claims.admin == true || "ops" in claims.groups || claims.groups == "dev" || claims.act.name == "bot" || claims.absent == 1`
	v := policed(t, Options{Deny: []policy.Deny{{Name: "sub", When: `claims.sub.startsWith("x") && claims.sub != "y"`}}}, c)
	x := v.ExplainClaims(encode(t, claims(map[string]any{"admin": "true", "groups": "ops", "act": map[string]any{"name": "nobody"}})))
	var allow, deny Finding
	for _, f := range x.Findings {
		switch f.Step {
		case "allow":
			allow = f
		case "deny rule sub":
			deny = f
		}
	}
	want := []ClaimRead{{"claims.admin", "a string", `"true"`}, {"claims.groups", "a string", `"ops"`}, {"claims.act.name", "a string", `"nobody"`}, {"claims.absent", "missing", ""}}
	if len(allow.Claims) != len(want) {
		t.Fatalf("%+v", allow)
	}
	for i := range want {
		if allow.Claims[i] != want[i] {
			t.Errorf("%+v, want %+v", allow.Claims[i], want[i])
		}
	}
	notes := strings.Join(allow.Notes, "\n")
	for _, says := range []string{"claims.admin is a string where the expression takes it for a boolean", "claims.groups is a string where the expression takes it for a list; (type(claims.groups) == string"} {
		if !strings.Contains(notes, says) {
			t.Errorf("no %q in %s", says, notes)
		}
	}
	if len(deny.Claims) != 1 || deny.Claims[0].Value != `"alice"` {
		t.Errorf("%+v", deny)
	}
	// The remedies that are named work.
	for _, remedy := range []string{`string(claims.admin) == "true"`, `"ops" in (type(claims.groups) == string ? [claims.groups] : claims.groups)`} {
		c.Allow = remedy
		v := policed(t, Options{}, c)
		for _, change := range []map[string]any{{"admin": "true", "groups": "ops"}, {"admin": true, "groups": []string{"dev", "ops"}}} {
			if x := v.ExplainClaims(encode(t, claims(change))); x.Refusal != nil {
				t.Errorf("%s with %v: %v", remedy, change, x.Refusal)
			}
		}
	}
}
