// Command kyverno decodes an ImageValidatingPolicy into Kyverno's own types, as strictly
// as a cluster does, and prints the mirror, issuer and subject of each attestor; or judges
// a pod by a ValidatingPolicy.
//
//	kyverno POLICY.yaml [POD.yaml]
package main

import (
	"fmt"
	"os"

	policies "github.com/kyverno/api/api/policies.kyverno.io/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	var err error
	if len(os.Args) > 2 {
		err = judge(os.Args[1], os.Args[2])
	} else {
		err = show(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func show(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var policy policies.ImageValidatingPolicy
	if err := yaml.UnmarshalStrict(content, &policy); err != nil {
		return err
	}
	for _, attestor := range policy.Spec.Attestors {
		for _, identity := range attestor.Cosign.Keyless.Identities {
			fmt.Println(attestor.Cosign.TUF.Mirror, identity.Issuer, identity.Subject)
		}
	}
	return nil
}
