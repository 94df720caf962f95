package deploy

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"go.yaml.in/yaml/v3"
)

// revoked and good are images by digest.
var (
	revoked = fmt.Sprintf("registry.example.com/app@sha256:%064d", 2)
	good    = fmt.Sprintf("registry.example.com/app@sha256:%064d", 1)
)

func render(t *testing.T, format, images string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "policies/render.sh", format)
	cmd.Stdin = strings.NewReader(images)
	text, err := cmd.Output()
	return string(text), err
}

// TestKyvernoPolicy: the policy's CEL, as the language says it, refuses a pod with a
// revoked image in any place, and no other.
func TestKyvernoPolicy(t *testing.T) {
	t.Parallel()
	text, err := render(t, "kyverno", revoked+"\n"+revoked[:len(revoked)-1]+"3")
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Kind string
		Spec struct {
			Variables, Validations []struct{ Name, Expression string }
		}
	}
	if err := yaml.Unmarshal([]byte(text), &policy); err != nil || policy.Kind != "ValidatingPolicy" || len(policy.Spec.Validations) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	env, err := cel.NewEnv(cel.Variable("object", cel.DynType), cel.Variable("variables", cel.DynType), cel.OptionalTypes())
	if err != nil {
		t.Fatal(err)
	}
	decide := func(pod map[string]any) any {
		t.Helper()
		variables := make(map[string]any)
		var last any
		for _, e := range append(policy.Spec.Variables, policy.Spec.Validations...) {
			ast, issues := env.Compile(e.Expression)
			if issues.Err() != nil {
				t.Fatal(issues.Err())
			}
			program, err := env.Program(ast)
			if err != nil {
				t.Fatal(err)
			}
			value, _, err := program.Eval(map[string]any{"object": map[string]any{"spec": pod}, "variables": variables})
			if err != nil {
				t.Fatal(err)
			}
			variables[e.Name], last = value, value
		}
		return last
	}
	with := func(image string) []any { return []any{map[string]any{"image": good}, map[string]any{"image": image}} }
	for name, test := range map[string]struct {
		pod  map[string]any
		want types.Bool
	}{
		"good":                 {map[string]any{"containers": with(good), "initContainers": with(good)}, true},
		"revoked":              {map[string]any{"containers": with(revoked)}, false},
		"revoked, in a mirror": {map[string]any{"containers": with(strings.Replace(revoked, "registry", "mirror", 1))}, false},
		"revoked, at first":    {map[string]any{"containers": with(good), "initContainers": with(revoked)}, false},
		"revoked, later":       {map[string]any{"containers": with(good), "ephemeralContainers": with(revoked)}, false},
	} {
		if got := decide(test.pod); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestClusterImagePolicy: the images fail, whoever signed them.
func TestClusterImagePolicy(t *testing.T) {
	t.Parallel()
	text, err := render(t, "policy-controller", revoked+"\n")
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Kind string
		Spec struct {
			Images      []struct{ Glob string }
			Authorities []struct{ Static struct{ Action string } }
		}
	}
	err = yaml.Unmarshal([]byte(text), &policy)
	if s := policy.Spec; err != nil || policy.Kind != "ClusterImagePolicy" || len(s.Images) != 1 || s.Images[0].Glob != "**@"+revoked[strings.Index(revoked, "sha256"):] ||
		len(s.Authorities) != 1 || s.Authorities[0].Static.Action != "fail" {
		t.Errorf("%v: %s", err, text)
	}
}

// TestRenderRefuses: what isn't an image by digest makes no policy, which could refuse
// everything or nothing.
func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	for _, images := range []string{"", "\n", "registry.example.com/app:v2\n", revoked + "0\n", revoked[:len(revoked)-1], revoked + "\nx\n", strings.ToUpper(revoked), "app'@sha256:" + revoked[len(revoked)-64:]} {
		if text, err := render(t, "kyverno", images); err == nil || text != "" {
			t.Errorf("%q: %s", images, text)
		}
	}
	if text, err := render(t, "pdf", revoked); err == nil || text != "" {
		t.Errorf("another format: %s", text)
	}
}
