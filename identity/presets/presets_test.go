package presets

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func compiled(t *testing.T, name string, constants map[string]string) *Rules {
	t.Helper()
	p, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	var f setting.Faults
	r := p.Compile("preset", constants, "constants", &f)
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, doc string) claim.Set {
	t.Helper()
	c, err := claim.Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// changed is the vendor's claims with some replaced; nil takes one out.
func changed(t *testing.T, name string, changes map[string]any) claim.Set {
	t.Helper()
	doc, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if v == nil {
			delete(m, k)
			continue
		}
		if m[k], err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	if doc, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return read(t, string(doc))
}

// written is a result in the form of the golden files.
func written(t *testing.T, san string, s extension.Set) string {
	t.Helper()
	s.Issuer, s.TokenSubject = "issuer", "subject"
	exts, err := s.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	named, err := extension.Name(exts)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "SAN %s\n", san)
	for _, n := range named {
		if n.Number != 1 && n.Number != 8 && n.Number != 24 {
			fmt.Fprintf(&b, "%d %s\n", n.Number, n.Value)
		}
	}
	return b.String()
}

// TestGolden holds every built-in preset to a token as its vendor documents it.
func TestGolden(t *testing.T) {
	t.Parallel()
	if len(Names()) < 2 {
		t.Fatalf("presets %v", Names())
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			doc, err := os.ReadFile("testdata/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile("testdata/" + name + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			san, s, err := compiled(t, name, nil).Apply(read(t, string(doc)))
			if err != nil {
				t.Fatal(err)
			}
			if got := written(t, san, s); got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestVariations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		preset    string
		constants map[string]string
		changes   map[string]any
		want      []string // lines of the golden form
		absent    string   // no line begins with it
	}{
		"github without environment": {preset: "github", changes: map[string]any{"environment": nil}, absent: "23 "},
		"github, empty environment":  {preset: "github", changes: map[string]any{"environment": ""}, absent: "23 "},
		"github numbers": {preset: "github", changes: map[string]any{"run_id": 12345678901, "repository_id": json.RawMessage("1e6")},
			want: []string{"21 https://github.com/octo-org/octo-repo/actions/runs/12345678901/attempts/2", "15 1000000"}},
		"GitHub Enterprise Server": {preset: "github", constants: map[string]string{"url": "https://ghe.example.com"},
			want: []string{"SAN https://ghe.example.com/octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main", "16 https://ghe.example.com/octo-org"}},
		"gitlab tag": {preset: "gitlab", changes: map[string]any{"ref_type": "tag", "ref": "v1"}, want: []string{"14 refs/tags/v1"}},
		"self-hosted gitlab": {preset: "gitlab", constants: map[string]string{"url": "https://git.example.com:8443"},
			changes: map[string]any{"ci_config_ref_uri": "git.example.com:8443/g/p//.gitlab-ci.yml@refs/heads/main"},
			want:    []string{"SAN https://git.example.com:8443/g/p//.gitlab-ci.yml@refs/heads/main", "16 https://git.example.com:8443/my-group"}},
	} {
		san, s, err := compiled(t, c.preset, c.constants).Apply(changed(t, c.preset, c.changes))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := written(t, san, s)
		for _, line := range c.want {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("%s: no line %q in\n%s", name, line, got)
			}
		}
		if c.absent != "" && strings.Contains(got, "\n"+c.absent) {
			t.Errorf("%s: a line %q in\n%s", name, c.absent, got)
		}
	}
}

// TestUnfitClaimsOfPresetsAreRefused takes each claim that a preset needs away, empties it and
// gives it each wrong type: each is refused by name, and no value is shown.
func TestUnfitClaimsOfPresetsAreRefused(t *testing.T) {
	t.Parallel()
	required := map[string][]string{
		"github": {"event_name", "sha", "workflow", "repository", "ref", "job_workflow_ref", "job_workflow_sha", "runner_environment",
			"repository_id", "repository_owner", "repository_owner_id", "workflow_ref", "workflow_sha", "run_id", "run_attempt", "repository_visibility"},
		"gitlab": {"ci_config_ref_uri", "ci_config_sha", "runner_environment", "project_path", "sha", "ref", "ref_type", "project_id",
			"namespace_path", "namespace_id", "pipeline_source", "job_id", "project_visibility"},
	}
	numbers := map[string]bool{"repository_id": true, "repository_owner_id": true, "run_id": true, "run_attempt": true,
		"project_id": true, "namespace_id": true, "job_id": true}
	for preset, names := range required {
		r := compiled(t, preset, nil)
		for _, name := range names {
			for _, c := range []struct {
				value any
				want  fault.Reason
			}{
				{nil, fault.ClaimMissing}, {"", fault.ClaimMissing}, {json.RawMessage("null"), fault.ClaimMissing},
				{7.5, fault.ClaimInvalid}, {7, fault.ClaimInvalid}, {true, fault.ClaimInvalid}, {map[string]any{"x": "SECRET"}, fault.ClaimInvalid}, {[]string{"SECRET"}, fault.ClaimInvalid},
				{"SECRET\n", fault.ClaimInvalid}, {strings.Repeat("S", claim.MaxText+1), fault.ClaimInvalid},
			} {
				if c.value == 7 && numbers[name] {
					continue
				}
				_, s, err := r.Apply(changed(t, preset, map[string]any{name: c.value}))
				e := fault.From(err)
				if e == nil || e.Reason != c.want || e.Metadata["claim"] != name || !strings.Contains(e.Public, name) || strings.Contains(e.Error(), "SECRET") {
					t.Errorf("%s with %s = %v: %v, want %s", preset, name, c.value, err, c.want)
				}
				if s != (extension.Set{}) {
					t.Errorf("%s with %s = %v: extensions beside the refusal", preset, name, c.value)
				}
			}
		}
		if _, _, err := r.Apply(changed(t, preset, map[string]any{"environment": 7})); fault.From(err).Reason != fault.ClaimInvalid {
			t.Errorf("%s: an optional claim of a wrong type: %v", preset, err)
		}
	}
}

func TestTheNameBelongsToTheInstance(t *testing.T) {
	t.Parallel()
	r := compiled(t, "gitlab", nil)
	for _, v := range []string{"evil.example/g/p//.gitlab-ci.yml@refs/heads/main", "gitlab.com.evil/g", "gitlab.com@evil/g", "gitlab.com"} {
		_, _, err := r.Apply(changed(t, "gitlab", map[string]any{"ci_config_ref_uri": v}))
		if e := fault.From(err); e == nil || e.Reason != fault.ClaimInvalid || e.Metadata["claim"] != "ci_config_ref_uri" {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	for name, doc := range map[string]string{
		"unknown field":     "name: x\nsan: y\nsans: z\n",
		"repeated field":    "name: x\nname: y\n",
		"unknown in case":   "variables: {v: [{claims: x, value: y}]}\n",
		"second document":   "name: x\n---\nname: y\n",
		"empty":             "",
		"wrong type":        "extensions: [a]\n",
		"repeated in a map": "extensions: {a: x, a: y}\n",
	} {
		if p, err := Decode(strings.NewReader(doc)); err == nil {
			t.Errorf("%s: read as %+v", name, p)
		}
	}
	for _, name := range []string{"", "nope", "../presets/github", "github.yaml"} {
		if _, err := Load(name); !errors.Is(err, errUnknown) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCompileFaults(t *testing.T) {
	t.Parallel()
	p := Preset{
		Constants:          map[string]string{"url": "https://x.example", "bad name": "v", "empty": "", "braces": "{x}"},
		Variables:          map[string][]Case{"url": {{Value: "x"}}, "none": {}, "v": {{Value: "a"}, {Claim: "c", Value: "{w}"}, {Equals: "x", Value: "a"}}, "w": {{Claim: "url", Value: "a"}, {Claim: "a b", Value: ""}}},
		SAN:                "{open",
		SANPrefix:          "close}",
		Extensions:         map[string]string{"issuer": "x", "token_subject": "x", "github_sha": "", "github_ref": "{}", "build_trigger": "{a b}", "github_workflow": "{x}"},
		OptionalExtensions: map[string]string{"github_workflow": "{x}", "run_invocation_uri": strings.Repeat("x", maxTemplate+1)},
	}
	var f setting.Faults
	p.Compile("p", map[string]string{"nope": "x", "url": "http://x"}, "k", &f)
	text := f.Err().Error()
	for _, want := range []string{
		"p.name: required", "k.nope: the preset", "k.url: must be an https URL", `p.constants.bad name: the name "bad name"`,
		"p.constants.empty: must be text", "p.constants.braces: must be text", "p.variables.url: is a constant too",
		"p.variables.none: needs at least one case", "p.variables.v: a case without a claim", "p.variables.v: a variable names claims",
		`p.variables.w: a case looks at a claim, and "url"`, `p.variables.w: the name "a b"`, "p.variables.w: required",
		"p.san: the template doesn't close a brace", "p.san_prefix: the template closes a brace", "p.extensions.issuer: is no extension",
		"p.extensions.token_subject: is no extension", "p.extensions.github_sha: required", "p.extensions.github_ref: a template names nothing",
		`p.extensions.build_trigger: the name "a b"`, "p.optional_extensions.github_workflow: is among the extensions too",
		"p.optional_extensions.run_invocation_uri: the template is longer",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no fault %q in\n%s", want, text)
		}
	}
	p.WholeNumbers, p.Booleans, p.Constants["spare"] = []string{"unused", "x", "x"}, []string{"unused"}, "v"
	p.Variables["spare_too"] = []Case{{Value: "v"}}
	var unused setting.Faults
	p.Compile("p", nil, "k", &unused)
	for _, want := range []string{
		"p.constants.spare: is used by no template", "p.variables.spare_too: is used by no template", `p.whole_numbers[0]: "unused" is a claim that no`,
		`p.whole_numbers[2]: "x" is listed twice`, `p.booleans[0]: "unused" is a claim that no`,
	} {
		if !strings.Contains(unused.Err().Error(), want) {
			t.Errorf("no fault %q in\n%s", want, unused.Err())
		}
	}
	p.WholeNumbers, p.Booleans = nil, nil
	delete(p.Constants, "spare")
	delete(p.Variables, "spare_too")
	var again setting.Faults
	p.Compile("p", map[string]string{"nope": "x", "url": "http://x"}, "k", &again)
	if again.Err().Error() != text {
		t.Error("the faults come in another order the second time")
	}
}

func TestConstantsAreURLs(t *testing.T) {
	t.Parallel()
	p, err := Load("github")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"", "github.com", "https://x/", "https://u@x", "https://x?q", "https://x?", "https://x#f", "https://x#", "https://", "https://x {y}"} {
		var f setting.Faults
		p.Compile("p", map[string]string{"url": v}, "k", &f)
		if f.Len() != 1 {
			t.Errorf("%q: %v", v, f.Err())
		}
	}
}

func TestChoices(t *testing.T) {
	t.Parallel()
	p := Preset{
		Name: "x", SAN: "https://x.example/{v}", Booleans: []string{"flag"},
		Variables: map[string][]Case{
			"v": {{Claim: "own", Value: "{own}"}, {Value: "other"}},
			"w": {{Claim: "flag", Equals: "true", Value: "set"}},
		},
		OptionalExtensions: map[string]string{"runner_environment": "{w}"},
	}
	var f setting.Faults
	r := p.Compile("p", nil, "k", &f)
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	for doc, want := range map[string]string{
		`{}`:                      "SAN https://x.example/other\n",
		`{"own":"","flag":false}`: "SAN https://x.example/other\n",
		`{"own":"a","flag":true}`: "SAN https://x.example/a\n11 set\n",
		`{"own":1}`:               "",
		`{"flag":1}`:              "",
	} {
		san, s, err := r.Apply(read(t, doc))
		if want == "" {
			if fault.From(err).Reason != fault.ClaimInvalid {
				t.Errorf("%s: %v", doc, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", doc, err)
		} else if got := written(t, san, s); got != want {
			t.Errorf("%s gives %q, want %q", doc, got, want)
		}
	}
	p.OptionalExtensions, p.Extensions = nil, p.OptionalExtensions
	if _, _, err := p.Compile("p", nil, "k", &f).Apply(read(t, `{"flag":false}`)); fault.From(err).Reason != fault.ClaimMissing {
		t.Errorf("a variable without a value: %v", err)
	}
}

// FuzzTemplate compiles and applies arbitrary templates: nothing that a claim
// says can change the fixed text around it.
func FuzzTemplate(f *testing.F) {
	f.Add("{url}/{a}", "x")
	f.Add("a{b}c{a}", "{url}")
	f.Add("}{", "")
	f.Add("{oidc.circleci.com/project-id}", "v")
	f.Fuzz(func(t *testing.T, text, value string) {
		p := Preset{Name: "x", SAN: text, Constants: map[string]string{"url": "https://x.example"}}
		var faults setting.Faults
		r := p.Compile("p", nil, "k", &faults)
		if faults.Len() > 0 {
			return
		}
		doc, err := json.Marshal(map[string]string{"a": value, "url": "https://evil.example"})
		if err != nil {
			t.Fatal(err)
		}
		c, err := claim.Parse(string(doc))
		if err != nil {
			t.Fatal(err)
		}
		san, _, err := r.Apply(c)
		if err != nil {
			if fault.From(err).Kind() != fault.Denied {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		// encoding/json mends invalid UTF-8 when it writes; read back what was sent.
		if want := strings.NewReplacer("{url}", "https://x.example", "{a}", c.Get("a").Literal()).Replace(text); san != want {
			t.Fatalf("%q gives %q, want %q", text, san, want)
		}
	})
}
