package ctlog_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var namedTest = regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/([^`]+))?`")

// TestEvidence: every test that the record of the log's evidence names is there.
func TestEvidence(t *testing.T) {
	t.Parallel()
	record, err := os.ReadFile("../docs/decisions/2026-11-24-log-evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, root := range []string{".", "../cmd/mayfly", "../internal/tools/conformance"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			sources = append(sources, string(source))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	named := namedTest.FindAllStringSubmatch(string(record), -1)
	if len(named) < 40 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, name := range named {
		found := false
		for _, source := range sources {
			found = found || strings.Contains(source, "\nfunc "+name[1]+"(") && (name[2] == "" || strings.Contains(source, `"`+name[2]+`"`))
		}
		if !found {
			t.Errorf("no test is called %s", strings.TrimSuffix(name[1]+"/"+name[2], "/"))
		}
	}
}
