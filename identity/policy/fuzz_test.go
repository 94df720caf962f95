package policy

import (
	"testing"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// FuzzExpression compiles any text, and evaluates what compiles over any claims.
func FuzzExpression(f *testing.F) {
	for _, text := range []string{
		"true", `claims.x == "y"`, `principal.san.startsWith("https://")`, `claims.all(k, k != "a")`, `claims.a[0].b.exists(x, x > 1)`,
		`request.time < timestamp("2027-01-01T00:00:00Z")`, `[1,2].map(x, x * 2).size() > 1`, `claims.x.matches("(a*)*b")`, `"a".charAt(-1) == ""`, `1/0 == 1`,
	} {
		f.Add(text, someClaims)
	}
	f.Fuzz(func(t *testing.T, text, claims string) {
		x, err := compile(text)
		if err != nil {
			return
		}
		set, err := claim.Parse(claims)
		if err != nil || len(claims) > maxTextBytes {
			return
		}
		in := input(t, someClaims)
		in.Claims = set
		if holds, err := x.Holds(in); holds && err != nil {
			t.Errorf("%q holds and fails: %v", text, err)
		}
	})
}
