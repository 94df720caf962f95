package presets

import (
	"fmt"
	"strings"
)

// part is a piece of a compiled template: fixed text, then what is named after it.
type part struct {
	literal  string
	claim    string // the claim whose text follows, if any
	variable int    // or one more than the index of the variable that follows
}

type template []part

// maxTemplate bounds a template, in bytes.
const maxTemplate = 1024

// parseTemplate splits `text{name}text`. It calls resolve for each name, whose
// error becomes a fault of the template.
func parseTemplate(s string, resolve func(name string) (part, error)) (template, error) {
	if s == "" {
		return nil, fmt.Errorf("required")
	}
	if len(s) > maxTemplate {
		return nil, fmt.Errorf("the template is longer than %d bytes", maxTemplate)
	}
	var out template
	literal := ""
	for s != "" {
		text, rest, found := strings.Cut(s, "{")
		if strings.Contains(text, "}") {
			return nil, fmt.Errorf("the template closes a brace that it didn't open")
		}
		literal += text
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, fmt.Errorf("the template doesn't close a brace")
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		p, err := resolve(name)
		if err != nil {
			return nil, err
		}
		literal += p.literal
		if p.claim != "" || p.variable != 0 {
			out = append(out, part{literal: literal, claim: p.claim, variable: p.variable})
			literal = ""
		}
		s = after
	}
	if literal != "" {
		out = append(out, part{literal: literal})
	}
	return out, nil
}

// checkName accepts the names that vendors give their claims, such as
// `run_id` and `oidc.circleci.com/project-id`.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("a template names nothing between its braces")
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("_-./:", c) >= 0:
		default:
			return fmt.Errorf("the name %q has a character other than letters, digits, _, -, ., / and colon", name)
		}
	}
	return nil
}
