package identity

import (
	"os"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestClaimsThatAreTextOrList: conditions that take both forms of a claim that
// issuers send, as docs/tokens.md gives them.
func TestClaimsThatAreTextOrList(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	for condition, c := range map[string]struct{ holds, fails []map[string]any }{
		`(type(claims.groups) == string ? [claims.groups] : claims.groups).exists(g, g == "release")`: {
			[]map[string]any{{"groups": "release"}, {"groups": []string{"release"}}, {"groups": []string{"a", "release"}}},
			[]map[string]any{{"groups": "a"}, {"groups": []string{}}, {"groups": nil}, {"groups": "release,a"}},
		},
		`string(claims.protected) == "true"`: {
			[]map[string]any{{"protected": true}, {"protected": "true"}},
			[]map[string]any{{"protected": false}, {"protected": "false"}, {"protected": []bool{true}}, {"protected": nil}},
		},
	} {
		if !strings.Contains(string(page), "`"+condition+"`") {
			t.Errorf("docs/tokens.md doesn't have %s", condition)
		}
		issuer := emailIssuer()
		issuer.Allow = condition
		v, _, _ := verifier(t, issuer)
		for _, claims := range c.holds {
			if _, err := v.Authenticate(t.Context(), token(t, claims)); err != nil {
				t.Errorf("%s of %v: %v", condition, claims, err)
			}
		}
		for _, claims := range c.fails {
			wantFault(t, v, condition, token(t, claims), fault.PolicyDenied)
		}
	}
}
