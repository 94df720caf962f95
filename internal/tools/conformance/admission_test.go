package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAdmission runs the commands of docs/tasks/admission.md, and has policy engines of
// clusters read what they print. There is no Rekor v2: policy-controller refuses a trust
// root with a key that isn't ECDSA.
func TestAdmission(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer())
	m.Issuer = issuer.Issuer
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	blocks := pageBlocks(t, "docs/tasks/admission.md")
	for name, test := range map[string]func(t *testing.T, m *mayfly, dir string){"policy-controller": testPolicyController, "kyverno": testKyverno} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, m)
			d.run(t, blocks[name])
			test(t, m, d.dir)
		})
	}
}

const policyController = "policy-webhook-v0.13.1"

// testPolicyController and testKyverno hold the resources for clusters to the code that
// reads them there.
func testPolicyController(t *testing.T, _ *mayfly, dir string) {
	binary := tool(t, policyController)
	for _, resource := range []string{"trustroot.yaml", "trustroot-inside.yaml"} {
		const read = "1 1 1" // an authority, a CT log, a timestamp authority
		if said := command(t, nil, binary, filepath.Join(dir, resource)); said != read {
			t.Errorf("%s: %s, want %s", resource, said, read)
		}
	}
	inside := string(readFile(t, filepath.Join(dir, "trustroot-inside.yaml")))
	file := filepath.Join(dir, "other.yaml")
	write(t, file, []byte(strings.Replace(inside, "mirrorFS:", "mirror:", 1)))
	if said, err := attempt(t, nil, binary, file); err == nil {
		t.Errorf("a resource with another field is accepted: %s", said)
	}
}

func testKyverno(t *testing.T, m *mayfly, dir string) {
	policy := "apiVersion: policies.kyverno.io/v1\nkind: ImageValidatingPolicy\nmetadata: {name: signed}\nspec:\n  attestors:\n"
	for line := range strings.Lines(string(readFile(t, filepath.Join(dir, "attestor.yaml")))) {
		policy += "  " + line
	}
	file := filepath.Join(dir, "policy.yaml")
	write(t, file, []byte(policy))
	if said, want := command(t, nil, tool(t, "kyverno-v1.19.1"), file), m.HTTP+"/tuf "+m.Issuer+" "+aliceEmail; said != want {
		t.Errorf("Kyverno reads %s, want %s", said, want)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
