package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	policies "github.com/kyverno/api/api/policies.kyverno.io/v1"
	"github.com/kyverno/kyverno/pkg/cel/compiler"
	"github.com/kyverno/kyverno/pkg/cel/matching"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/lazy"
	"sigs.k8s.io/yaml"
)

// judge has the code of Kyverno's engine match, compile and evaluate a ValidatingPolicy,
// in the order of pkg/cel/policies/vpol/compiler: importing that takes a build of all
// that Kyverno can call from CEL, registries and clusters, which our policy doesn't.
func judge(path, podPath string) error {
	var policy policies.ValidatingPolicy
	var pod unstructured.Unstructured
	for path, to := range map[string]any{path: &policy, podPath: &pod.Object} {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict(content, to); err != nil {
			return err
		}
	}
	attributes := admission.NewAttributesRecord(&pod, nil, schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, "default", "app",
		schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "", admission.Create, nil, false, nil)
	matches, err := matching.NewMatcher().Match(&matching.MatchCriteria{Constraints: policy.Spec.MatchConstraints}, attributes, nil)
	if err != nil || !matches {
		return errors.Join(errors.New("the policy isn't about this"), err)
	}

	base := environment.MustBaseEnvSet(version.MajorMinor(1, 0))
	stored, err := base.Env(environment.StoredExpressions)
	if err != nil {
		return err
	}
	provider := compiler.NewVariablesProvider(stored.CELTypeProvider())
	set, err := base.Extend(environment.VersionedOptions{IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: append(compiler.DefaultEnvOptionsWithCompat(),
		cel.Variable(compiler.ObjectKey, cel.DynType), cel.Variable(compiler.VariablesKey, compiler.VariablesType), cel.CustomTypeProvider(provider))})
	if err != nil {
		return err
	}
	env, err := set.Env(environment.StoredExpressions)
	if err != nil {
		return err
	}
	at := field.NewPath("spec")
	variables, faults := compiler.CompileVariables(at, env, provider, policy.Spec.Variables...)
	if len(faults) > 0 {
		return faults.ToAggregate()
	}
	known := lazy.NewMapValue(compiler.VariablesType)
	data := map[string]any{compiler.ObjectKey: pod.Object, compiler.VariablesKey: known}
	for name, program := range variables {
		known.Append(name, func(*lazy.MapValue) ref.Val {
			out, _, err := program.Eval(data)
			if err != nil {
				return types.WrapErr(err)
			}
			return out
		})
	}
	for _, rule := range policy.Spec.Validations {
		compiled, faults := compiler.CompileValidation(at, env, rule)
		if len(faults) > 0 {
			return faults.ToAggregate()
		}
		out, _, err := compiled.Program.Eval(data)
		if err != nil {
			return err
		}
		if out != types.True {
			return fmt.Errorf("denied %v: %s", policy.Spec.ValidationActions, compiled.Message)
		}
	}
	return nil
}
