package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var conformanceBlock = regexp.MustCompile("(?s)<!-- run in conformance: ([^>]+) -->\n```sh\n(.*?)```\n")

// TestPages runs the blocks of the pages that need foreign programs, as they are
// written, against a running mayfly; `go test ./cmd/mayfly` runs the others.
func TestPages(t *testing.T) {
	m := startDev(t)
	dir := t.TempDir()
	if err := os.Symlink(cosign(t, cosign3), filepath.Join(dir, "cosign")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "trusted_root.json"), get(t, m.HTTP+"/trusted_root.json"))
	write(t, filepath.Join(dir, "client.secret"), []byte("none"))
	write(t, filepath.Join(dir, "1.root.json"), get(t, m.HTTP+"/tuf/1.root.json"))
	tested := map[string]string{"docs/running.md cosign": "Verified OK", "docs/tuf.md tuf": "Verified OK"}
	here := strings.NewReplacer("https://ca.example.com", m.HTTP, "https://accounts.google.com", m.Issuer)
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(pages, "../../../README.md") {
		if strings.HasSuffix(file, "/releases.md") { // internal/tools/release runs that page on a release
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range conformanceBlock.FindAllStringSubmatch(string(text), -1) {
			name := strings.TrimPrefix(file, "../../../") + " " + block[1]
			want, known := tested[name]
			if !known {
				t.Errorf("no test runs the block %s", name)
				continue
			}
			delete(tested, name)
			t.Run("page-"+block[1], func(t *testing.T) {
				environment := []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "SIGSTORE_ID_TOKEN=" + m.token(t), "TUF_ROOT=" + filepath.Join(dir, "tuf")}
				said := command(t, environment, "sh", "-euc", "cd '"+dir+"'\n"+here.Replace(block[2])+"\n")
				if !strings.Contains(said, want) {
					t.Errorf("it says %s", said)
				}
			})
		}
	}
	for name := range tested {
		t.Errorf("there is no block %s", name)
	}
}
