package oidc

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestBoundsAreStated: docs/tokens.md has the bounds that no option sets.
func TestBoundsAreStated(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	for row, bound := range map[string]any{
		"| bytes; `server": maxTokenBytes, "tried for its signature": maxTries, "time for a fetch": int(fetchTimeout / time.Second),
		"of a `jwks_file` too": maxBody, "that a pattern matched": maxMemberBody, "keys in its set": maxKeys, "bits of an RSA key": maxRSABits,
		"| redirects": maxRedirects, "that keys serve": int(maxFresh / time.Minute), "one client address": fmt.Sprintf("%d a second, %d at once", clientRate, clientBurst),
		"of all addresses": fmt.Sprintf("%d a second, %d at once", newIssuerRate, newIssuerBurst), "whose keys are kept": fmt.Sprintf("%d, %d", maxIssuers, maxUnproven),
		"keys aren't kept": maxProven,
	} {
		found := false
		for line := range strings.Lines(string(page)) {
			found = found || strings.Contains(line, row) && strings.Contains(line, fmt.Sprint(bound))
		}
		if !found {
			t.Errorf("no line of docs/tokens.md says of %q that it is %v", row, bound)
		}
	}
}
