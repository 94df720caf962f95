package identity

import (
	"errors"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// parseClaimPath reads the part of JSONPath (RFC 9535 §2.5.1) that names one
// member: `$.federated_claims.connector_id`, or `$['a.b'].c` for a name with
// other characters than letters, digits, `_` and `-`.
func parseClaimPath(s string) ([]string, error) {
	fault := errors.New("must be a path such as $.federated_claims.connector_id or $['example.com/org'].name")
	rest, ok := strings.CutPrefix(s, "$")
	if !ok || rest == "" || len(s) > maxIssuer {
		return nil, fault
	}
	var steps []string
	for rest != "" {
		var name string
		if after, quoted := strings.CutPrefix(rest, "['"); quoted {
			if name, rest, ok = strings.Cut(after, "']"); !ok || strings.ContainsAny(name, `'\`) {
				return nil, fault
			}
		} else if after, dotted := strings.CutPrefix(rest, "."); dotted {
			end := strings.IndexAny(after, ".[")
			if end < 0 {
				end = len(after)
			}
			if name, rest = after[:end], after[end:]; !all(name, segmentByte) {
				return nil, fault
			}
		}
		if name == "" {
			return nil, fault
		}
		steps = append(steps, name)
	}
	return steps, nil
}

// claimAt follows a path; what isn't there is a missing value.
func claimAt(c claim.Set, steps []string) claim.Value {
	v := c.Get(steps[0])
	for _, step := range steps[1:] {
		v = v.Get(step)
	}
	return v
}
