package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A mark stands above each block of a page. Those of `run in conformance` need foreign
// programs; `go test ./cmd/mayfly` runs the others.
var conformanceBlock = regexp.MustCompile("(?s)<!-- run in conformance: ([^>]+) -->\n```(?:sh|yaml)\n(.*?)```\n")

// pageTests run a page's blocks, those of one name put together, as they are written.
var pageTests = map[string]func(t *testing.T, blocks map[string]string){
	"docs/running.md":              saysVerified,
	"docs/releases.md":             nil, // internal/tools/release does, on a release, of make conformance-full
	"docs/tuf.md":                  saysVerified,
	"docs/tasks/laptops.md":        pageLaptops,
	"docs/tasks/github-actions.md": pageGitHub,
	"docs/tasks/gitlab-ci.md":      pageGitLab,
	"docs/tasks/admission.md":      nil, // TestAdmission does, of make conformance-full
	"docs/tasks/air-gapped.md":     pageAirGapped,
	"docs/tasks/tuf-expired.md":    pageExpired,
}

// TestPages runs the commands of all pages, each where its reader is.
func TestPages(t *testing.T) {
	found := make(map[string]bool)
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/tasks/*.md"} {
		files, err := filepath.Glob("../../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			page := strings.TrimPrefix(file, "../../../")
			blocks := pageBlocks(t, page)
			if len(blocks) == 0 {
				continue
			}
			found[page] = true
			switch test, known := pageTests[page]; {
			case !known:
				t.Errorf("no test runs the blocks of %s", page)
			case test != nil:
				t.Run("page-"+strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) { test(t, blocks) })
			}
		}
	}
	for page := range pageTests {
		if !found[page] {
			t.Errorf("%s has no block", page)
		}
	}
}

func pageBlocks(t *testing.T, page string) map[string]string {
	t.Helper()
	blocks := make(map[string]string)
	for _, block := range conformanceBlock.FindAllStringSubmatch(string(readFile(t, "../../../"+page)), -1) {
		blocks[block[1]] += block[2]
	}
	return blocks
}

// desk is where the reader of a page is: a folder with 1.root.json in it, and the
// programs that pages call.
type desk struct {
	dir         string
	environment []string
	here        *strings.Replacer // names of the pages, as they are here
}

func newDesk(t *testing.T, m *mayfly, environment ...string) *desk {
	t.Helper()
	d := &desk{dir: t.TempDir(), here: strings.NewReplacer(
		"https://ca.example.com", m.HTTP, "https://accounts.google.com", m.Issuer, "my-ca", m.dir,
		"https://token.actions.githubusercontent.com", m.Issuer, "https://gitlab.com ", m.Issuer+" ")}
	bin := t.TempDir()
	for name, program := range map[string]string{"cosign": cosign(t, cosign3), "mayfly": setting(t, "MAYFLY_BIN")} {
		if err := os.Symlink(program, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	d.environment = append([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + d.dir, "SIGSTORE_NO_CACHE=false"}, environment...)
	write(t, filepath.Join(d.dir, "1.root.json"), get(t, m.HTTP+"/tuf/1.root.json"))
	return d
}

// run runs commands of a page, by a shell that others may start.
func (d *desk) run(t *testing.T, script string, starts ...string) string {
	t.Helper()
	said, err := d.attempt(t, script, starts...)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return said
}

func (d *desk) attempt(t *testing.T, script string, starts ...string) (string, error) {
	t.Helper()
	args := append(starts, "bash", "-euxc", "cd '"+d.dir+"'\n"+d.here.Replace(script)+"\n")
	return attempt(t, d.environment, args[0], args[1:]...)
}

// holds runs commands of a page and looks for what the page says that they print.
func (d *desk) holds(t *testing.T, want, script string, starts ...string) {
	t.Helper()
	if said := d.run(t, script, starts...); !strings.Contains(said, want) {
		t.Errorf("it doesn't say %q:\n%s", want, said)
	}
}

// saysVerified is for pages on which cosign verifies what it has signed.
func saysVerified(t *testing.T, blocks map[string]string) {
	m := startDev(t)
	for name, script := range blocks {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, m, "SIGSTORE_ID_TOKEN="+m.token(t))
			write(t, filepath.Join(d.dir, "trusted_root.json"), get(t, m.HTTP+"/trusted_root.json"))
			write(t, filepath.Join(d.dir, "client.secret"), []byte("none"))
			d.holds(t, "Verified OK", script)
		})
	}
}
