package conformance

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestClients lets every foreign program work with one Mayfly, and ends with
// the readers of its log, which then holds what the clients did.
func TestClients(t *testing.T) {
	m := startDev(t)
	tsa := startTimestampAuthority(t, m)
	for _, client := range []struct {
		name string
		test func(t *testing.T, m *mayfly, tsa *timestampAuthority)
	}{
		{"cosign-v3", testCosign3},
		{"cosign-v3-keys", testCosign3Keys},
		{"cosign-v3-timestamp", testCosign3Timestamp},
		{"cosign-v2", testCosign2},
		{"cosign-v2-bundle", testCosign2Bundle},
		{"sigstore-go", testSigstoreGo},
		{"sigstore-js", testSigstoreJS},
		{"oidc-provider", testOIDCProvider},
		{"oidc-provider-rotation", testRotation},
		{"zitadel-oidc", testZitadel},
		{"ci-presets", testPresets},
		{"gh", testGH},
		{"openssl", testOpenSSL},
		{"ct-go", testCTClient},
		{"tessera-fsck", testFsck},
		{"precertificate-signer", testPresigned},
	} {
		t.Run(client.name, func(t *testing.T) { client.test(t, m, tsa) })
	}
}

// documentedClient is a row of the table in docs/clients.md; its star is for those of
// make conformance-full.
var documentedClient = regexp.MustCompile(`(?m)^\| ([a-z-]+)\*? \| ([0-9][0-9.]*) \| `)

// pinnedAs is what stands before a client's version where it is pinned.
var pinnedAs = map[string]string{
	"cosign":            "/cosign v",
	"gh":                "github.com/cli/cli/v2 v",
	"gitsign":           "sigstore/gitsign v",
	"kyverno":           "admission kyverno v",
	"model-signing":     "model-signing==",
	"policy-controller": "admission policy-controller v",
	"sigstore-go":       "sigstore-go v",
	"sigstore-java":     "<artifactId>sigstore-java</artifactId>\n      <version>",
	"sigstore-js":       `"sigstore": "`,
	"sigstore-python":   "\nsigstore==",
	"sigstore-rust":     `sigstore-sign = "=`,
}

// TestDocumentedClients: docs/clients.md says the versions that are pinned.
func TestDocumentedClients(t *testing.T) {
	var pins strings.Builder
	for _, file := range []string{"../go.mod", "tools.sh", "node/package.json", "python/requirements.txt", "java/pom.xml", "rust/Cargo.toml"} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pins.Write(content)
	}
	page, err := os.ReadFile("../../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := documentedClient.FindAllStringSubmatch(string(page), -1)
	if len(rows) < 7 {
		t.Fatalf("the table has another form: %q", rows)
	}
	for _, row := range rows {
		before, known := pinnedAs[row[1]]
		if !known || !strings.Contains(pins.String(), before+row[2]) {
			t.Errorf("%s %s isn't pinned", row[1], row[2])
		}
	}
}
