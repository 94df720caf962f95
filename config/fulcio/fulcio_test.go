package fulcio_test

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/config/fulcio"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func convert(t *testing.T, file string) (*fulcio.Import, map[string]identity.IssuerConfig) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fulcio.Convert(data)
	if err != nil {
		t.Fatal(err)
	}
	var f setting.Faults
	if identity.CheckIssuers("issuers", got.Issuers, &f); f.Len() > 0 {
		t.Errorf("the result doesn't load: %v", f.Err())
	}
	byName := map[string]identity.IssuerConfig{}
	for _, i := range got.Issuers {
		if i.Allow != "true" || !reflect.DeepEqual(i.Audiences, []string{"sigstore"}) {
			t.Errorf("%+v", i)
		}
		byName[i.URL+i.Pattern] = i
	}
	return got, byName
}

func TestYAML(t *testing.T) {
	t.Parallel()
	got, issuers := convert(t, "config.yaml")
	for name, want := range map[string]struct{ kind, preset string }{
		"https://accounts.google.com":                   {"email", ""},
		"https://dex.example.com/auth":                  {"email", ""},
		"https://token.actions.githubusercontent.com":   {"ci-provider", "github"},
		"https://token.actions.githubusercontent.com/*": {"ci-provider", "github"},
		"https://gitlab.com":                            {"ci-provider", "gitlab"},
		"https://agent.buildkite.com":                   {"ci-provider", "buildkite"},
		"https://oidc.codefresh.io":                     {"ci-provider", "codefresh"},
		"https://oidc.circleci.com":                     {"ci-provider", "circleci"},
		"https://ci.example.com":                        {"ci-provider", ""},
		"https://issuer.enforce.dev":                    {"chainguard-identity", ""},
		"https://oidc.eks.*.amazonaws.com/id/*":         {"kubernetes", ""},
	} {
		i, ok := issuers[name]
		if !ok || string(i.Type) != want.kind || i.Preset != want.preset {
			t.Errorf("%s: %+v", name, i)
		}
		delete(issuers, name)
	}
	if len(issuers) != 0 {
		t.Errorf("also %v", slices.Sorted(maps.Keys(issuers)))
	}
	text := strings.Join(got.Decisions, "\n")
	for _, want := range []string{
		"https://dex.example.com/auth: colour has no counterpart", `https://nobody.example.com: ci-issuer-metadata has no "not-there": left out`,
		"https://gitlab.com: the templates of gitlab-pipeline are those of our preset gitlab", "https://ci.example.com: the templates of own-ci are taken over as an inline_preset",
		`https://accounts.google.com: allow: "true"`, "every issuer: stricter than Fulcio: a token for several audiences whose azp", "every ci-provider: stricter than Fulcio: a name with a percent sign",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no decision %q in\n%s", want, text)
		}
	}
}

// TestInlinePreset runs converted templates.
func TestInlinePreset(t *testing.T) {
	t.Parallel()
	_, issuers := convert(t, "config.yaml")
	v, err := identity.NewVerifier([]identity.IssuerConfig{issuers["https://ci.example.com"]}, identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for shared, want := range map[string]string{`"true"`: "shared", `true`: "shared", `"no"`: "own"} {
		x := v.ExplainClaims(`{"iss":"https://ci.example.com","aud":"sigstore","sub":"s","pipeline":"p/7","own/repo":"acme/app","shared":` + shared + `}`)
		if x.Refusal != nil || x.SAN != "https://ci.example.com/p/7" || x.Set.SourceRepositoryURI != "https://ci.example.com/acme/app" ||
			x.Set.RunnerEnvironment != want {
			t.Errorf("%s: %v %+v", shared, x.Refusal, x)
		}
	}
}

// TestOptionalStaysOptional: what Fulcio leaves out of a certificate is left out,
// and where it leaves a hole the decisions say that Mayfly doesn't.
func TestOptionalStaysOptional(t *testing.T) {
	t.Parallel()
	got, err := fulcio.Convert([]byte(`
oidc-issuers: {https://ci.example.com: {client-id: sigstore, type: ci-provider, ci-provider: c}}
ci-issuer-metadata:
  c:
    default-template-values: {stage: ""}
    extension-templates:
      source-repository-ref: '{{index . "ref"}}'
      deployment-environment: stage
      build-config-uri: '{{.base}}/config/{{index . "config"}}'
      source-repository-uri: 'https://ci.example.com/{{.stage}}'
      runner-environment: '{{if eq (index . "shared") "true"}}shared{{else}}own{{end}}'
    subject-alternative-name-template: '{{.base}}/{{index . "pipeline"}}'
`))
	if err != nil {
		t.Fatal(err)
	}
	v, err := identity.NewVerifier(got.Issuers, identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for claims, issued := range map[string]bool{
		`"pipeline":"p","config":"x","ref":"main","stage":"prod","shared":"true"`: true, `"pipeline":"p","config":"x"`: true,
		`"pipeline":"p","config":"x","ref":null,"stage":"","shared":null`: true, `"pipeline":"p"`: false, `"config":"x"`: false,
	} {
		x := v.ExplainClaims(`{"iss":"https://ci.example.com","aud":"sigstore","sub":"s","base":"https://ci.example.com",` + claims + `}`)
		if (x.Refusal == nil) != issued {
			t.Errorf("%s: %v", claims, x.Refusal)
		}
	}
	text := strings.Join(got.Decisions, "\n")
	for _, want := range []string{
		"build-config-uri is a text with a claim in it, which Fulcio writes with a hole where the token lacks the claim; here the request is refused", "source-repository-uri is a text",
		"here the extension is left out", "a token without a claim of the name is refused", "lacks the claim shared", "a claim of the token writes the host of the name",
	} {
		if !strings.Contains(strings.ReplaceAll(text, "buildconfiguri", "build-config-uri"), want) {
			t.Errorf("no decision %q in\n%s", want, text)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	got, issuers := convert(t, "config.json")
	if len(got.Issuers) != 6 || issuers["https://token.actions.githubusercontent.com"].Preset != "github" ||
		issuers["https://spire.example.com"].SPIFFETrustDomain != "example.com" || issuers["https://users.example.com"].SubjectDomain != "example.com" ||
		issuers["https://kubernetes.default.svc"].BearerTokenFile == "" ||
		issuers["https://container.googleapis.com/v1/projects/*/locations/*/clusters/*"].Type != identity.TypeKubernetes {
		t.Errorf("%+v", got.Issuers)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "[]", "a: [", "oidc-issuers: 5", "oidc-issuers: {a: b}", "issuers: []", "oidc-issuers: {https://a.example: {type: email}}",
		"oidc-issuers: {https://a.example: {type: oracle, client-id: x}}", "ci-issuer-metadata: 3", strings.Repeat("#", fulcio.MaxBytes+1),
		"oidc-issuers: {https://a.example: {type: ci-provider, client-id: x, ci-provider: c}}\nci-issuer-metadata: {c: {subject-alternative-name-template: '{{ .a | html }}'}}",
		"oidc-issuers: {https://a.example: {type: ci-provider, client-id: x, ci-provider: c}}\nci-issuer-metadata: {c: {subject-alternative-name-template: '{{range .a}}{{end}}'}}",
	} {
		if got, err := fulcio.Convert([]byte(text)); err == nil {
			t.Errorf("%.60q: %+v", text, got)
		}
	}
}

func FuzzConvert(f *testing.F) {
	for _, file := range []string{"config.yaml", "config.json"} {
		data, err := os.ReadFile("testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		got, err := fulcio.Convert(data)
		if err != nil {
			return
		}
		var faults setting.Faults
		identity.CheckIssuers("issuers", got.Issuers, &faults)
	})
}
