package identity

import (
	"errors"
	"strings"
)

// parseClaimPath reads the part of JSONPath (RFC 9535 §2.5.1) that names one
// member: `$.federated_claims.connector_id`, or `$['a.b'].c` for a name with
// other characters than letters, digits, `_` and `-`.
func parseClaimPath(s string) ([]string, error) {
	invalid := errors.New("must be a path such as $.federated_claims.connector_id or $['example.com/org'].name")
	rest, ok := strings.CutPrefix(s, "$")
	if !ok || rest == "" || len(s) > maxIssuer {
		return nil, invalid
	}
	var path []string
	for rest != "" {
		var name string
		if after, quoted := strings.CutPrefix(rest, "['"); quoted {
			if name, rest, ok = strings.Cut(after, "']"); !ok || strings.ContainsAny(name, `'\`) {
				return nil, invalid
			}
		} else if after, dotted := strings.CutPrefix(rest, "."); dotted {
			end := strings.IndexAny(after, ".[")
			if end < 0 {
				end = len(after)
			}
			if name, rest = after[:end], after[end:]; !all(name, segmentByte) {
				return nil, invalid
			}
		}
		if name == "" {
			return nil, invalid
		}
		path = append(path, name)
	}
	return path, nil
}
