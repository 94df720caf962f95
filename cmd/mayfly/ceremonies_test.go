package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ceremonies are the commands of docs/ceremonies.md that a test has to run, by
// their marks.
func ceremonies(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "ceremonies.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, m := range markedBlock.FindAllStringSubmatch(string(text), -1) {
		found[m[1]] += m[2]
	}
	if len(found) != 4 {
		t.Errorf("docs/ceremonies.md marks other blocks than are run: %v", found)
	}
	return found
}

// TestCeremoniesDoc runs the ceremonies as they are written down; that with an
// HSM runs where PKCS #11 is built in.
func TestCeremoniesDoc(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"online":  "ok  key: file:issuing.key.pem is the first certificate's, and signs",
		"offline": "ok  root: it is that of root.pem",
		"policy":  "ok  chain: 2 certificates, from CN=Example policy CA",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if said := shell(t, t.TempDir(), ceremonies(t)[name]); !strings.Contains(said, want) {
				t.Errorf("it said\n%s\nwant %q", said, want)
			}
		})
	}
}
