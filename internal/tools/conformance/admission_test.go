package conformance

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// TestAdmission has policy engines of clusters read what is rendered for them. There is
// no Rekor v2: policy-controller refuses a trust root with a key that isn't ECDSA.
func TestAdmission(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer())
	m.Issuer = issuer.Issuer
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	pinned := m.download(t, t.TempDir(), "/tuf/1.root.json")
	t.Run("policy-controller", func(t *testing.T) { testPolicyController(t, m, pinned) })
	t.Run("kyverno", func(t *testing.T) { testKyverno(t, m, pinned) })
}

// testPolicyController and testKyverno hold the resources for clusters to the code that
// reads them there.
func testPolicyController(t *testing.T, m *mayfly, pinned string) {
	binary, mirror, first := tool(t, "policy-controller-v0.13.1"), m.HTTP+"/tuf", readFile(t, pinned)
	remote, err := trustroot.TrustRootRemote("mayfly", mirror, first)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := trustroot.TrustRootRepository("mayfly", first, m.repository(t))
	if err != nil {
		t.Fatal(err)
	}
	for what, resource := range map[string][]byte{"that follows": remote, "with the repository in it": inside} {
		file := filepath.Join(t.TempDir(), "trustroot.yaml")
		write(t, file, resource)
		const read = "1 1 1" // an authority, a CT log, a timestamp authority
		if said := command(t, nil, binary, file); said != read {
			t.Errorf("a resource %s: %s, want %s", what, said, read)
		}
	}
	file := filepath.Join(t.TempDir(), "trustroot.yaml")
	write(t, file, []byte(strings.Replace(string(inside), "mirrorFS:", "mirrorFs:", 1)))
	if said, err := attempt(t, nil, binary, file); err == nil {
		t.Errorf("a resource with another field is accepted: %s", said)
	}
}

func testKyverno(t *testing.T, m *mayfly, pinned string) {
	binary, file, mirror := tool(t, "kyverno-v1.19.1"), filepath.Join(t.TempDir(), "policy.yaml"), m.HTTP+"/tuf"
	attestor, err := trustroot.KyvernoAttestor(mirror, readFile(t, pinned), m.Issuer, aliceEmail)
	if err != nil {
		t.Fatal(err)
	}
	policy := "apiVersion: policies.kyverno.io/v1\nkind: ImageValidatingPolicy\nmetadata: {name: signed}\nspec:\n  attestors:\n"
	for line := range strings.Lines(string(attestor)) {
		policy += "  " + line
	}
	write(t, file, []byte(policy))
	if said, want := command(t, nil, binary, file), mirror+" "+m.Issuer+" "+aliceEmail; said != want {
		t.Errorf("Kyverno reads %s, want %s", said, want)
	}
}

// repository is all that the TUF repository has now, by path.
func (m *mayfly) repository(t *testing.T) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	fetch := func(name string) []byte {
		t.Helper()
		files[name] = get(t, m.HTTP+"/tuf/"+name)
		return files[name]
	}
	var meta struct {
		Signed struct {
			Meta    map[string]struct{ Version json.Number }
			Targets map[string]struct{ Hashes map[string]string }
		}
	}
	for at := "timestamp.json"; at != ""; {
		meta.Signed.Meta = nil
		if err := json.Unmarshal(fetch(at), &meta); err != nil {
			t.Fatal(err)
		}
		at = ""
		for name, of := range meta.Signed.Meta {
			at = of.Version.String() + "." + name
		}
	}
	for name, target := range meta.Signed.Targets {
		fetch(path.Join("targets", target.Hashes["sha256"]+"."+name))
	}
	fetch("1.root.json")
	return files
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
