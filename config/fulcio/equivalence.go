package fulcio

import (
	"encoding/json"
	"maps"
	"strings"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/presets"
)

// equivalent reports whether our preset and the converted one say the same of tokens
// that have every claim which the converted one names, of those that lack what
// may be lacking, and of each way that a choice can go.
func equivalent(name string, converted *presets.Preset) bool {
	const issuer = "https://issuer.example"
	verdicts := func(c identity.IssuerConfig) func(claims string) *identity.Explanation {
		c.URL, c.Type, c.Audiences, c.Allow = issuer, identity.TypeCI, []string{"a"}, "true"
		v, err := identity.NewVerifier([]identity.IssuerConfig{c}, identity.Options{})
		if err != nil {
			return nil
		}
		return v.ExplainClaims
	}
	ours, theirs := verdicts(identity.IssuerConfig{Preset: name}), verdicts(identity.IssuerConfig{InlinePreset: converted})
	if ours == nil || theirs == nil {
		return false
	}
	for _, claims := range samples(issuer, converted) {
		a, b := ours(claims), theirs(claims)
		if (a.Refusal == nil) != (b.Refusal == nil) || a.SAN != b.SAN || a.Extensions != b.Extensions || a.Refusal != nil {
			return false
		}
	}
	return true
}

// samples are tokens' claims: all of them with values of their own, then with
// each choice taken, and then without each claim that the preset can do without.
func samples(issuer string, p *presets.Preset) []string {
	all := map[string]any{"iss": issuer, "aud": "a", "sub": "subject"}
	for _, name := range p.WholeNumbers {
		all[name] = "value-of-" + strings.ReplaceAll(plain(name), "/", ".") // most claims are one segment of a path
	}
	// GitLab's claim begins with its host, which our preset checks.
	if _, has := all["ci_config_ref_uri"]; has {
		all["ci_config_ref_uri"] = "gitlab.com/group/project//.gitlab-ci.yml@refs/heads/main"
	}
	for _, name := range []string{"scm_repo_url", "oidc.circleci.com/vcs-origin"} {
		if _, has := all[name]; has {
			all[name] = "https://git.example/acme/app"
		}
	}
	out := []string{encode(all)}
	for _, cases := range p.Variables {
		if one := cases[0]; one.Equals != "" {
			chosen := maps.Clone(all)
			chosen[one.Claim] = one.Equals
			out = append(out, encode(chosen))
		}
	}
	for _, template := range p.OptionalExtensions {
		for _, name := range p.WholeNumbers {
			if template == "{"+name+"}" {
				less := maps.Clone(all)
				delete(less, name)
				out = append(out, encode(less))
			}
		}
	}
	return out
}

func encode(claims map[string]any) string {
	text, err := json.Marshal(claims) // strings alone, which always can be written
	if err != nil {
		return ""
	}
	return string(text)
}
