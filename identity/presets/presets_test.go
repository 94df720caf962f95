package presets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

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
	if _, err := s.Extensions(); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "SAN %s\n", san)
	for _, n := range s.Named() {
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

// kinds is what a preset makes of each claim that it names.
type kinds struct {
	named    []string // in the name, or in a text with more around it: needed
	alone    []string // by themselves in extensions: needed, and left out where they are empty or null
	optional []string
	numbers  []string // those that may be a whole number
}

var claimsOfPresets = map[string]kinds{
	"azure-devops": {named: []string{"org_id", "prj_id", "def_id", "run_id"}, optional: []string{"rpo_uri", "rpo_ver", "rpo_ref", "rpo_id"}, numbers: []string{"def_id", "run_id"}},
	"bitbucket":    {named: []string{"workspaceUuid", "repositoryUuid", "pipelineUuid", "stepUuid"}, optional: []string{"branchName", "deploymentEnvironmentUuid"}},
	"buddy": {named: []string{"workspace_domain", "project_name", "pipeline_id", "execution_id"}, optional: []string{"base_url", "runner_environment", "revision", "ref", "triggered_on"},
		numbers: []string{"pipeline_id", "execution_id"}},
	"buildkite": {named: []string{"organization_slug", "pipeline_slug", "build_number", "job_id"}, alone: []string{"runner_environment", "build_commit", "build_source"}, numbers: []string{"build_number"}},
	"circleci": {named: []string{"oidc.circleci.com/project-id", "oidc.circleci.com/pipeline-definition-id", "oidc.circleci.com/pipeline-id", "oidc.circleci.com/workflow-id", "oidc.circleci.com/job-id"},
		optional: []string{"oidc.circleci.com/vcs-origin", "oidc.circleci.com/vcs-ref", "oidc.circleci.com/ssh-rerun"}},
	"codefresh": {named: []string{"account_name", "pipeline_name", "account_id", "pipeline_id", "workflow_id"}, optional: []string{"platform_url", "runner_environment", "scm_repo_url", "scm_ref"}},
	"forgejo": {named: []string{"workflow_ref", "repository", "repository_owner", "run_number"}, alone: []string{"sha", "ref", "event_name"}, optional: []string{"repository_id", "repository_owner_id"},
		numbers: []string{"run_number", "repository_id", "repository_owner_id"}},
	"gitea": {named: []string{"workflow_ref", "repository", "repository_owner", "run_number"}, alone: []string{"runner_environment", "sha", "repository_id", "repository_owner_id", "event_name"},
		optional: []string{"job_workflow_ref", "job_workflow_sha", "workflow_sha", "ref", "repository_visibility"}, numbers: []string{"run_number", "repository_id", "repository_owner_id"}},
	"github": {named: []string{"job_workflow_ref", "repository", "repository_owner", "workflow_ref", "run_id", "run_attempt"},
		alone: []string{"event_name", "sha", "workflow", "ref", "job_workflow_sha", "runner_environment", "repository_id", "repository_owner_id", "workflow_sha", "repository_visibility"}, optional: []string{"environment"},
		numbers: []string{"repository_id", "repository_owner_id", "run_id", "run_attempt"}},
	"gitlab": {named: []string{"ci_config_ref_uri", "project_path", "namespace_path", "job_id"},
		alone: []string{"ci_config_sha", "runner_environment", "sha", "ref", "ref_type", "project_id", "namespace_id", "pipeline_source", "project_visibility"}, optional: []string{"environment"},
		numbers: []string{"project_id", "namespace_id", "job_id"}},
	"google-cloud-build": {named: []string{"email"}, optional: []string{"email_verified"}},
	"jenkins":            {named: []string{"sub"}, optional: []string{"build_number"}, numbers: []string{"build_number"}},
	"semaphore":          {named: []string{"iss", "prj", "job_id"}, optional: []string{"ref", "trg"}},
	"terraform":          {named: []string{"terraform_organization_name", "terraform_workspace_name", "terraform_run_id"}},
}

// TestEveryClaimOfEveryPreset takes each claim that a preset names away, empties
// it, makes it null and gives it each wrong type. What is needed is refused by name,
// and no value is shown; what isn't leaves no trace, and no hole in a text.
func TestEveryClaimOfEveryPreset(t *testing.T) {
	t.Parallel()
	null := json.RawMessage("null")
	for _, preset := range Names() {
		r, all := compiled(t, preset, nil), claimsOfPresets[preset]
		if len(all.named) == 0 {
			t.Fatalf("%s has no row in the table", preset)
		}
		for _, name := range slices.Concat(all.named, all.alone, all.optional) {
			for _, value := range []any{nil, null, ""} {
				san, s, err := r.Apply(changed(t, preset, map[string]any{name: value}))
				if slices.Contains(all.optional, name) || value != nil && slices.Contains(all.alone, name) {
					if err != nil || strings.Contains(written(t, san, s), "//\n") || strings.Contains(written(t, san, s), "null") {
						t.Errorf("%s with %s = %v: %v", preset, name, value, err)
					}
					continue
				}
				refusedByName(t, preset, name, value, s, err, fault.ClaimMissing)
			}
			for _, value := range []any{7.5, 7, true, map[string]any{"x": "SECRET"}, []string{"SECRET"}, "SECRET\n", strings.Repeat("S", claim.MaxText+1)} {
				if value == 7 && slices.Contains(all.numbers, name) || value == true && (name == "oidc.circleci.com/ssh-rerun" || name == "email_verified") {
					continue
				}
				_, s, err := r.Apply(changed(t, preset, map[string]any{name: value}))
				refusedByName(t, preset, name, value, s, err, fault.ClaimInvalid)
			}
		}
	}
}

func refusedByName(t *testing.T, preset, name string, value any, s extension.Set, err error, want fault.Reason) {
	t.Helper()
	e := fault.From(err)
	if e == nil || e.Reason != want || e.Metadata["claim"] != name || !strings.Contains(e.Public, name) || strings.Contains(e.Error(), "SECRET") {
		t.Errorf("%s with %s = %v: %v, want %s", preset, name, value, err, want)
	}
	if s != (extension.Set{}) {
		t.Errorf("%s with %s = %v: extensions beside the refusal", preset, name, value)
	}
}

// TestEveryPresetKnowsItsClaims: what a preset names is among what it says that the vendor sends, and so is what the vendor's token has.
func TestEveryPresetKnowsItsClaims(t *testing.T) {
	t.Parallel()
	standard := []string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "url"} // and the claim that tries to be a constant
	for preset, all := range claimsOfPresets {
		p, err := Load(preset)
		if err != nil {
			t.Fatal(err)
		}
		known := p.Known()
		if preset == "jenkins" { // whose administrator may add any
			if known != nil {
				t.Errorf("jenkins claims to know %v", known)
			}
			continue
		}
		names := slices.Concat(all.named, all.alone, all.optional)
		for name := range changed(t, preset, nil).All() {
			names = append(names, name)
		}
		for _, name := range names {
			if known[name] == claim.Missing && !slices.Contains(standard, name) {
				t.Errorf("%s doesn't know the claim %s", preset, name)
			}
		}
	}
}

// TestEveryPresetBindsItsHost: whatever claims say, the name's host is the
// preset's, or the verified issuer's; and a claim that is one segment stays one.
func TestEveryPresetBindsItsHost(t *testing.T) {
	t.Parallel()
	// What may hold slashes: refs, paths of projects, names with a project before them, and whole URLs.
	paths := []string{"workflow_ref", "job_workflow_ref", "repository", "ci_config_ref_uri", "project_path", "namespace_path", "pipeline_name", "email", "sub", "iss"}
	for _, preset := range Names() {
		r := compiled(t, preset, nil)
		good, _, err := r.Apply(changed(t, preset, nil))
		if err != nil {
			t.Fatal(err)
		}
		origin := good[:len("https://")+strings.Index(good[len("https://"):], "/")+1]
		for name := range changed(t, preset, nil).All() {
			for _, value := range []string{"evil.example", "https://evil.example", "https://github.com/acme/app", "@evil.example/x", ".evil.example/x", "//evil.example", "a/b", "a?b", "a#b", "a@b", `a\b`, ".", "..", "a%2Fb", "%C3%BC"} {
				san, _, err := r.Apply(changed(t, preset, map[string]any{name: value}))
				if err != nil {
					continue
				}
				if name == "iss" { // verified before, so not anybody's
					continue
				}
				if !strings.HasPrefix(san, origin) {
					t.Errorf("%s with %s = %s: %s", preset, name, value, san)
				}
				if slices.Contains(claimsOfPresets[preset].named, name) && !slices.Contains(paths, name) && strings.ContainsAny(value, `/?#@\`) || san != good && strings.Contains(value, "%") && preset != "jenkins" {
					t.Errorf("%s takes %s = %s: %s", preset, name, value, san)
				}
			}
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

// TestTheClaimThatSaysWhereFromMustAgree: a claim about the host doesn't choose it.
func TestTheClaimThatSaysWhereFromMustAgree(t *testing.T) {
	t.Parallel()
	for preset, name := range map[string]string{"buddy": "base_url", "codefresh": "platform_url"} {
		for value, ok := range map[any]bool{nil: true, "": true, "https://own.example.com": false, "https://github.com": false} {
			_, _, err := compiled(t, preset, nil).Apply(changed(t, preset, map[string]any{name: value}))
			if e := fault.From(err); (e == nil) != ok || e != nil && (e.Metadata["claim"] != name || !strings.Contains(e.Public, "preset_constants")) {
				t.Errorf("%s, %v: %v", preset, value, err)
			}
		}
		own := compiled(t, preset, map[string]string{"url": "https://own.example.com"})
		san, _, err := own.Apply(changed(t, preset, map[string]any{name: "https://own.example.com"}))
		if err != nil || !strings.HasPrefix(san, "https://own.example.com/") {
			t.Errorf("%s of one's own: %s, %v", preset, san, err)
		}
	}
	for value, ok := range map[string]bool{"alice@gmail.com": false, "x@evil.gserviceaccount.com.example": false, "12@cloudbuild.gserviceaccount.com": true} {
		if _, _, err := compiled(t, "google-cloud-build", nil).Apply(changed(t, "google-cloud-build", map[string]any{"email": value})); (err == nil) != ok {
			t.Errorf("%s: %v", value, err)
		}
	}
}

// TestBuiltInFilesAreStrict: every built-in file has known fields alone, each once, is
// one document, and has the name of its file.
func TestBuiltInFilesAreStrict(t *testing.T) {
	t.Parallel()
	for _, name := range Names() {
		b, err := files.ReadFile(name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		d := yaml.NewDecoder(bytes.NewReader(b))
		d.KnownFields(true)
		var p Preset
		if err := d.Decode(&p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: more than one document: %v", name, err)
		}
		if p.Name != name {
			t.Errorf("%s: its name is %q", name, p.Name)
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
	p.Segments, p.Fixed, p.Claims = []string{"unused"}, map[string]string{"url": "x", "fix": "{other}"}, map[string][]string{"string": {"x"}}
	p.Variables["late"] = []Case{{Suffix: "x", Value: "a"}}
	p.Variables["spare_too"] = []Case{{Value: "v"}}
	var unused setting.Faults
	p.Compile("p", nil, "k", &unused)
	for _, want := range []string{
		"p.constants.spare: is used by no template", "p.variables.spare_too: is used by no template", `p.whole_numbers[0]: "unused" is a claim that no`,
		`p.whole_numbers[2]: "x" is listed twice`, `p.booleans[0]: "unused" is a claim that no`,
		`p.segments[0]: "unused" is a claim that no`, `p.fixed.url: "url" is a constant`, `p.fixed.fix: names the claim "other"`, "p.claims.string: is no kind", "p.variables.late: a case without a claim",
	} {
		if !strings.Contains(unused.Err().Error(), want) {
			t.Errorf("no fault %q in\n%s", want, unused.Err())
		}
	}
	p.WholeNumbers, p.Booleans, p.Segments, p.Fixed, p.Claims = nil, nil, nil, nil, nil
	delete(p.Variables, "late")
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
		if san != "" && strings.Contains(c.Get("a").Literal(), "%") && strings.Contains(text, "{a}") && text != "{a}" {
			t.Fatalf("%q: a percent sign of a claim in %q", text, san)
		}
		// encoding/json mends invalid UTF-8 when it writes; read back what was sent.
		if want := strings.NewReplacer("{url}", "https://x.example", "{a}", c.Get("a").Literal()).Replace(text); san != want {
			t.Fatalf("%q gives %q, want %q", text, san, want)
		}
	})
}
