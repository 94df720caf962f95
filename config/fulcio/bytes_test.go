package fulcio_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/identity"
)

// fulcioMetadata is what a Fulcio configuration says of a CI vendor.
type fulcioMetadata struct {
	Defaults   map[string]string `yaml:"default-template-values"`
	Extensions map[string]string `yaml:"extension-templates"`
	SAN        string            `yaml:"subject-alternative-name-template"`
}

// arcs are the numbers of 1.3.6.1.4.1.57264.1 by the names in a Fulcio configuration.
var arcs = map[string]int{
	"github-workflow-trigger": 2, "github-workflow-sha": 3, "github-workflow-name": 4, "github-workflow-repository": 5, "github-workflow-ref": 6,
	"build-signer-uri": 9, "build-signer-digest": 10, "runner-environment": 11,
	"source-repository-uri": 12, "source-repository-digest": 13, "source-repository-ref": 14, "source-repository-identifier": 15,
	"source-repository-owner-uri": 16, "source-repository-owner-identifier": 17, "build-config-uri": 18, "build-config-digest": 19,
	"build-trigger": 20, "run-invocation-uri": 21, "source-repository-visibility-at-signing": 22, "deployment-environment": 23,
}

func oid(arc int) string { return "1.3.6.1.4.1.57264.1." + strconv.Itoa(arc) }

// render does what Fulcio does: a name alone is a claim or a default, anything
// with braces a Go template over both.
func (m fulcioMetadata) render(t *testing.T, text string, claims map[string]any) string {
	t.Helper()
	all := map[string]any{}
	for k, v := range m.Defaults {
		all[k] = v
	}
	for k, v := range claims {
		all[k] = v
	}
	if !strings.Contains(text, "{{") {
		s, _ := all[text].(string)
		return s
	}
	var b strings.Builder
	if err := template.Must(template.New("").Option("missingkey=error").Parse(text)).Execute(&b, all); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSameBytes evaluates Fulcio's own templates with the library that Fulcio
// uses, and holds the converted issuers' names and encoded extensions to them,
// byte for byte, for a token of each vendor.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Metadata map[string]fulcioMetadata `yaml:"ci-issuer-metadata"`
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	_, issuers := convert(t, "config.yaml")
	for _, vendor := range []struct{ url, metadata, claims string }{
		{"https://token.actions.githubusercontent.com", "github-workflow", "github"},
		{"https://gitlab.com", "gitlab-pipeline", "gitlab"},
	} {
		v, err := identity.NewVerifier([]identity.IssuerConfig{issuers[vendor.url]}, identity.Options{})
		if err != nil {
			t.Fatal(err)
		}
		token, err := os.ReadFile("../../identity/presets/testdata/" + vendor.claims + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var claims map[string]any
		if err := json.Unmarshal(token, &claims); err != nil {
			t.Fatal(err)
		}
		claims["iss"] = vendor.url
		// The fixtures carry a claim that no vendor sends, which tries to replace a
		// preset's constant: here it can't, in Fulcio it would.
		delete(claims, "url")
		token, err = json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		m := doc.Metadata[vendor.metadata]
		subject, _ := claims["sub"].(string)
		want := map[string][]byte{
			oid(1): []byte(vendor.url), oid(8): utf8(t, vendor.url), oid(24): utf8(t, subject),
		}
		for name, text := range m.Extensions {
			arc, value := arcs[name], m.render(t, text, claims)
			switch {
			case arc == 0:
				t.Fatalf("no extension is called %s", name)
			case value == "":
			case arc <= 6:
				want[oid(arc)] = []byte(value)
			default:
				want[oid(arc)] = utf8(t, value)
			}
		}
		got := v.ExplainClaims(string(token))
		if got.Refusal != nil {
			t.Fatalf("%s: %v", vendor.url, got.Refusal)
		}
		if san := m.render(t, m.SAN, claims); got.SAN != san {
			t.Errorf("%s: the name is %s; Fulcio's is %s", vendor.url, got.SAN, san)
		}
		ours, err := got.Set.Extensions()
		if err != nil {
			t.Fatal(err)
		}
		have := map[string][]byte{}
		for _, e := range ours {
			have[e.Id.String()] = e.Value
		}
		if !maps.EqualFunc(have, want, bytes.Equal) {
			t.Errorf("%s: the extensions are\n%q\nFulcio's are\n%q", vendor.url, have, want)
		}
	}
}

// outcome is what Fulcio makes of a template: the text, whether it has a claim's
// hole or Go's words for a value that isn't text in it, or an error.
func (m fulcioMetadata) outcome(text, changed string, claims map[string]any) (got string, rubbish bool, err error) {
	all := map[string]string{}
	for k, v := range m.Defaults {
		all[k] = v
	}
	for k, v := range claims {
		all[k] = fmt.Sprintf("%s", v)
	}
	if !strings.Contains(text, "{{") {
		v, has := all[text]
		if !has {
			return "", false, errors.New("not present")
		}
		return v, strings.Contains(v, "%!s("), nil
	}
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", false, err
	}
	var b strings.Builder
	err = t.Execute(&b, all)
	lone := strings.HasPrefix(text, `{{index . "`) && strings.Count(text, "{{") == 1 && strings.HasSuffix(text, "}}")
	// A text with nothing in a claim's place, or one that was chosen by nothing.
	named := strings.Contains(text, "."+changed+" ") || strings.Contains(text, "."+changed+"}") || strings.Contains(text, `"`+changed+`"`)
	hole := named && (all[changed] == "" || strings.Contains(all[changed], "%!s(")) && !lone
	return b.String(), hole || strings.Contains(b.String(), "%!s("), err
}

// TestIssuesWhereverFulcioDoes takes each claim of each vendor away, makes it null and empties it. Where
// Fulcio's templates give a certificate without rubbish in it, ours give the same; and ours never give rubbish.
func TestIssuesWhereverFulcioDoes(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Metadata map[string]fulcioMetadata `yaml:"ci-issuer-metadata"`
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	_, issuers := convert(t, "config.yaml")
	for _, vendor := range []struct{ url, metadata, claims string }{
		{"https://token.actions.githubusercontent.com", "github-workflow", "github"}, {"https://gitlab.com", "gitlab-pipeline", "gitlab"},
		{"https://agent.buildkite.com", "buildkite-job", "buildkite"}, {"https://oidc.codefresh.io", "codefresh-workflow", "codefresh"}, {"https://oidc.circleci.com", "circleci-job", "circleci"},
	} {
		v, err := identity.NewVerifier([]identity.IssuerConfig{issuers[vendor.url]}, identity.Options{})
		if err != nil {
			t.Fatal(err)
		}
		token, err := os.ReadFile("../../identity/presets/testdata/" + vendor.claims + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var whole map[string]any
		if err := json.Unmarshal(token, &whole); err != nil {
			t.Fatal(err)
		}
		whole["iss"] = vendor.url
		delete(whole, "url")
		for name, value := range whole { // Fulcio writes numbers and booleans in Go's words
			if f, number := value.(float64); number && name != "exp" && name != "iat" && name != "nbf" {
				whole[name] = strconv.Itoa(int(f))
			} else if b, boolean := value.(bool); boolean {
				whole[name] = strconv.FormatBool(b)
			}
		}
		for name := range whole {
			if slices.Contains([]string{"iss", "sub", "aud"}, name) {
				continue
			}
			for _, change := range []string{"absent", "null", "empty"} {
				claims := maps.Clone(whole)
				switch change {
				case "absent":
					delete(claims, name)
				case "null":
					claims[name] = nil
				default:
					claims[name] = ""
				}
				compareOutcomes(t, v, doc.Metadata[vendor.metadata], name, change, claims)
			}
		}
	}
}

func compareOutcomes(t *testing.T, v *identity.Verifier, m fulcioMetadata, name, change string, claims map[string]any) {
	t.Helper()
	token, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	got := v.ExplainClaims(string(token))
	san, unfit, err := m.outcome(m.SAN, name, claims)
	refuses, holes := err != nil, false
	want := map[int]string{}
	for extension, text := range m.Extensions {
		value, rubbish, err := m.outcome(text, name, claims)
		refuses = refuses || err != nil
		holes = holes || rubbish && strings.Contains(text, "{{")
		if value != "" && value != `""` && !rubbish {
			want[arcs[extension]] = value
		}
	}
	if got.Refusal != nil {
		if !refuses && !unfit && !holes {
			t.Errorf("%s %s: Fulcio issues for %s, and we say %v", name, change, san, got.Refusal)
		}
		return
	}
	if unfit || got.SAN != san && !refuses {
		t.Errorf("%s %s: the name is %s; Fulcio's is %s", name, change, got.SAN, san)
	}
	if _, err := got.Set.Extensions(); err != nil {
		t.Fatal(err)
	}
	have := map[int]string{}
	for _, e := range got.Set.Named() {
		if e.Number != 1 && e.Number != 8 && e.Number != 24 {
			have[e.Number] = e.Value
		}
	}
	if !refuses && !maps.Equal(have, want) {
		t.Errorf("%s %s: the extensions are\n%v\nFulcio's are\n%v", name, change, have, want)
	}
}

// utf8 is the DER UTF8String of the extensions from .8 on.
func utf8(t *testing.T, s string) []byte {
	t.Helper()
	der, err := asn1.MarshalWithParams(s, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	return der
}
