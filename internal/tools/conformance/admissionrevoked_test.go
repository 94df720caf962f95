package conformance

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestAdmissionOfRevoked has policy engines of clusters admit what cosign signed, and
// with the policies of deploy/policies that are made of the CA's feed refuse the second
// of three images, which is revoked.
func TestAdmissionOfRevoked(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), func(_ *testing.T, _, config string) string {
		return config + "\naccess:\n  admins: [{name: alice, when: claims.email == \"" + aliceEmail + "\"}]\n"
	})
	m.Issuer = issuer.Issuer
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	d := newDesk(t, m)
	for _, block := range pageBlocks(t, "docs/tasks/admission.md") {
		d.run(t, block)
	}
	registry := startRegistry(t, true)
	images := []string{push(t, registry, "v1"), push(t, registry, "v2"), push(t, registry, "v3"), push(t, registry, "unsigned")}
	documents := m.documents(t)
	for _, image := range images[:3] {
		command(t, nil, cosign(t, cosign3), "sign", "--yes", "--signing-config", documents.signingConfig, "--trusted-root", documents.trustedRoot,
			"--identity-token", m.token(t), image)
	}

	engines := map[string]func(t *testing.T, m *mayfly, dir string) admits{"policy-controller": byPolicyController, "kyverno": byKyverno}
	judge := func(t *testing.T, engine, revoked, want string) {
		t.Helper()
		admits := engines[engine](t, m, d.dir)
		var got []bool
		for i, image := range images {
			admitted, said := admits(t, image, revoked)
			if got = append(got, admitted); i == 1 && revoked != "" && !strings.Contains(said, "revoked, and what was signed of it counts for nothing") {
				t.Errorf("it says of what is revoked: %s", said)
			}
			t.Logf("%d: %s", i, said)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("admitted %v, want %s", got, want)
		}
	}
	for engine := range engines {
		t.Run(engine+"-before", func(t *testing.T) { judge(t, engine, "", "[true true true false]") })
	}
	m.revokes(t, images[1])
	for engine := range engines {
		t.Run(engine, func(t *testing.T) {
			revoked := filepath.Join(t.TempDir(), "revoked.yaml")
			write(t, revoked, []byte(m.policy(t, engine)+"\n"))
			judge(t, engine, revoked, "[true false true false]")
		})
	}
}

// admits tells whether an engine admits an image and what it says; revoked is the file
// of a policy beside the one that wants signatures.
type admits func(t *testing.T, image, revoked string) (admitted bool, said string)

// revokes says of the certificate that an image was signed with that it is revoked.
func (m *mayfly) revokes(t *testing.T, image string) {
	t.Helper()
	binary, token := setting(t, "MAYFLY_BIN"), filepath.Join(t.TempDir(), "token")
	var v verified
	said := command(t, nil, binary, append([]string{"verify", "--json", "--crl", "none", "--trusted-root", m.trustedRoot, image}, m.signedAs(aliceEmail)...)...)
	if err := json.Unmarshal([]byte(said), &v); err != nil || len(v.Signatures) != 1 {
		t.Fatalf("%v: %s", err, said)
	}
	write(t, token, []byte(m.token(t)))
	command(t, nil, binary, "revoke", "--ca", m.HTTP, "--serial", v.Signatures[0].Serial, "--reference", image, "--token-file", token)
}

// policy makes one as deploy/policies/README.md says.
func (m *mayfly) policy(t *testing.T, format string) string {
	t.Helper()
	_, made, found := strings.Cut(string(readFile(t, "../../../deploy/policies/README.md")), "\ncurl -fsS ")
	made, _, ends := strings.Cut(made, " kyverno | kubectl apply -f -")
	if !found || !ends {
		t.Fatal("deploy/policies/README.md has another command")
	}
	policies, err := filepath.Abs("../../../deploy/policies")
	if err != nil {
		t.Fatal(err)
	}
	made = strings.NewReplacer("https://ca.example.com", m.HTTP, "./render.sh", filepath.Join(policies, "render.sh")).Replace(made)
	return command(t, nil, "bash", "-euo", "pipefail", "-c", "curl -fsS "+made+" "+format)
}

// byPolicyController asks policy-controller's own code.
func byPolicyController(t *testing.T, m *mayfly, dir string) admits {
	t.Helper()
	signed := `apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: signed}
spec:
  images: [{glob: "**"}]
  authorities:
    - signatureFormat: bundle
      attestations: [{name: signed, predicateType: "https://sigstore.dev/cosign/sign/v1"}]
      keyless: {trustRootRef: mayfly, identities: [{issuer: "` + m.Issuer + `", subject: ` + aliceEmail + `}]}
      rfc3161timestamp: {trustRootRef: mayfly}
`
	return func(t *testing.T, image, revoked string) (bool, string) {
		t.Helper()
		both, file := signed, filepath.Join(t.TempDir(), "policies.yaml")
		if revoked != "" {
			both = string(readFile(t, revoked)) + "---\n" + signed
		}
		write(t, file, []byte(both))
		said, err := attempt(t, nil, tool(t, policyController), filepath.Join(dir, "trustroot.yaml"), file, image)
		return err == nil, said
	}
}

// byKyverno asks Kyverno's own command about a pod.
func byKyverno(t *testing.T, _ *mayfly, dir string) admits {
	t.Helper()
	signed := `apiVersion: policies.kyverno.io/v1
kind: ImageValidatingPolicy
metadata: {name: signed}
spec:
  validationActions: [Deny]
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  matchImageReferences: [{glob: "*"}]
  validations:
    - expression: images.containers.map(image, verifyImageSignatures(image, [attestors.mayfly])).all(e, e > 0)
      message: an image isn't signed
  attestors:
` + indent(string(readFile(t, filepath.Join(dir, "attestor.yaml"))), "    ")
	file := filepath.Join(t.TempDir(), "signed.yaml")
	write(t, file, []byte(signed))
	return func(t *testing.T, image, revoked string) (bool, string) {
		t.Helper()
		pod := filepath.Join(t.TempDir(), "pod.yaml")
		write(t, pod, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: app, namespace: default}\nspec: {containers: [{name: app, image: "+image+"}]}\n"))
		args := []string{"apply", file, "--resource", pod, "--registry", "--remove-color", "--detailed-results"}
		if revoked != "" {
			args = append(args, revoked)
		}
		said, err := attempt(t, nil, tool(t, "kyverno-cli-v1.19.1"), args...)
		return err == nil, said
	}
}

func indent(text, by string) string {
	return by + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+by) + "\n"
}
