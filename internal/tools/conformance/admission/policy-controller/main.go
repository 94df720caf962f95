// Command policy-controller holds a TrustRoot resource to policy-controller's own code:
// it is decoded as strictly as a cluster does, validated as its webhook does, and its
// trust root is fetched and read as its reconciler does. It prints how many
// certificate authorities and logs that has; or judges an image by policies, as its
// webhook does where the configuration refuses what no policy is about. Its own
// command for that reads no trusted_root.json.
//
//	policy-controller RESOURCE.yaml [POLICIES.yaml IMAGE]
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/policy-controller/pkg/apis/config"
	"github.com/sigstore/policy-controller/pkg/apis/policy/v1alpha1"
	"github.com/sigstore/policy-controller/pkg/policy"
	"github.com/sigstore/policy-controller/pkg/reconciler/trustroot"
	"github.com/sigstore/policy-controller/pkg/tuf"
	"sigs.k8s.io/yaml"
)

func main() {
	ctx := context.Background() // nothing bounds a program that a test runs
	var resource v1alpha1.TrustRoot
	keys, err := read(ctx, os.Args[1], &resource)
	switch {
	case err == nil && len(os.Args) > 2:
		err = judge(ctx, os.Args[2], os.Args[3], map[string]*config.SigstoreKeys{resource.Name: keys})
	case err == nil:
		fmt.Println(len(keys.CertificateAuthorities), len(keys.Ctlogs), len(keys.TimestampAuthorities))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// judge refuses an image that a policy refuses, or that none is about.
func judge(ctx context.Context, policies, image string, roots map[string]*config.SigstoreKeys) error {
	ref, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	verifier, err := policy.Compile(ctx, policy.Verification{NoMatchPolicy: "deny", Policies: &[]policy.Source{{Path: policies}}},
		func(format string, args ...any) { fmt.Fprintf(os.Stderr, "warning: "+format+"\n", args...) })
	if err != nil {
		return err
	}
	c := config.FromContextOrDefaults(ctx)
	c.SigstoreKeysConfig = &config.SigstoreKeysMap{SigstoreKeys: roots}
	return verifier.Verify(config.ToContext(ctx, c), ref, authn.DefaultKeychain)
}

func read(ctx context.Context, path string, resource *v1alpha1.TrustRoot) (*config.SigstoreKeys, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict(content, resource); err != nil {
		return nil, err
	}
	resource.SetDefaults(ctx)
	if err := resource.Validate(ctx); err != nil {
		return nil, err
	}
	const target = "trusted_root.json" // where none is named, as the reconciler has it
	switch spec := resource.Spec; {
	case spec.Remote != nil:
		client, err := tuf.ClientFromRemote(ctx, spec.Remote.Mirror.String(), spec.Remote.Root, spec.Remote.Targets)
		if err != nil {
			return nil, err
		}
		return trustroot.GetSigstoreKeysFromTuf(ctx, client, cmp.Or(spec.Remote.TrustedRootTarget, target))
	case spec.Repository != nil:
		client, err := tuf.ClientFromSerializedMirror(ctx, spec.Repository.MirrorFS, spec.Repository.Root, spec.Repository.Targets, v1alpha1.DefaultTUFRepoPrefix)
		if err != nil {
			return nil, err
		}
		return trustroot.GetSigstoreKeysFromTuf(ctx, client, cmp.Or(spec.Repository.TrustedRootTarget, target))
	}
	return nil, errors.New("neither remote nor repository")
}
