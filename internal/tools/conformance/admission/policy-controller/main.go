// Command policy-controller holds a TrustRoot resource to policy-controller's own code:
// it is decoded as strictly as a cluster does, validated as its webhook does, and its
// trust root is fetched and read as its reconciler does. It prints how many
// certificate authorities and logs that has.
//
//	policy-controller RESOURCE.yaml
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/policy-controller/pkg/apis/config"
	"github.com/sigstore/policy-controller/pkg/apis/policy/v1alpha1"
	"github.com/sigstore/policy-controller/pkg/reconciler/trustroot"
	"github.com/sigstore/policy-controller/pkg/tuf"
	"sigs.k8s.io/yaml"
)

func main() {
	keys, err := read(context.Background(), os.Args[1]) // nothing bounds a program that a test runs
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(len(keys.CertificateAuthorities), len(keys.Ctlogs), len(keys.TimestampAuthorities))
}

func read(ctx context.Context, path string) (*config.SigstoreKeys, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var resource v1alpha1.TrustRoot
	if err := yaml.UnmarshalStrict(content, &resource); err != nil {
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
