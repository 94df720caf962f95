package identity

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestBoundsAreStated: docs/tokens.md has the bounds that no option sets.
func TestBoundsAreStated(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	for row, bound := range map[string]int{
		"`url`, `pattern` or alias": maxIssuer, "`authorized_parties` entry": maxAudience, "The memory of used tokens": maxRemembered,
	} {
		wantBound(t, string(page), row, bound)
	}
}

// wantBound checks that the line of a page which holds row has the number.
func wantBound(t *testing.T, page, row string, bound int) {
	t.Helper()
	for line := range strings.Lines(page) {
		if strings.Contains(line, row) && strings.Contains(line, fmt.Sprint(bound)) {
			return
		}
	}
	t.Errorf("no line of docs/tokens.md says of %q that it is %d", row, bound)
}
