package keystore

import (
	"os"
	"strings"
	"testing"
)

// TestKeysDocument holds docs/keys.md to the form that internal/tools/conformance/keys.sh
// writes: a table with an outcome for every backend, and a credential for each
// that there is.
func TestKeysDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begins := strings.Cut(string(text), "\n<!-- table -->\n")
	table, _, ends := strings.Cut(rest, "\n<!-- end -->\n")
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if !begins || !ends || len(lines) < 3 || lines[0] != "| Backend | Held against | Which is | What ran | Outcome |" {
		t.Fatal("docs/keys.md has no table between its marks: write it with `make conformance-keys`")
	}
	ran := make(map[string]bool)
	for _, line := range lines[2:] {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 5 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		switch outcome := cells[4]; {
		case outcome == "ran":
			ran[cells[0]] = true
		case strings.HasPrefix(outcome, "did not run: ") && len(outcome) > len("did not run: "):
		default:
			t.Errorf("the outcome %q: %s", outcome, line)
		}
	}
	for _, b := range Backends() {
		if !ran[b.Title] {
			t.Errorf("nothing ran for %s", b.Title)
		}
		for _, c := range b.Credentials {
			if !strings.Contains(string(text), "\n| `"+string(c)+"` |") {
				t.Errorf("credential %s has no line", c)
			}
		}
	}
}
