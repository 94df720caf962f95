package presets

import (
	"errors"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

var errNested = errors.New("a variable names claims and constants, not another variable")

// Apply gives the name and the extensions for a verified token's claims. The
// set's issuer and token subject are left for the caller. The error is a
// *fault.Error that names the claim that is missing or unfit, never its value.
func (r *Rules) Apply(c claim.Set) (san string, s extension.Set, err error) {
	if san, err = r.text(r.san, c); err != nil {
		return "", extension.Set{}, err
	}
	if len(r.sanPrefix) > 0 {
		prefix, err := r.text(r.sanPrefix, c)
		if err != nil {
			return "", extension.Set{}, err
		}
		if !strings.HasPrefix(san, prefix) {
			return "", extension.Set{}, claim.Invalid(firstClaim(r.san), "doesn't belong to the instance that this issuer's rule is for")
		}
	}
	for i := range r.extensions {
		rule := &r.extensions[i]
		text, err := r.text(rule.template, c)
		if err != nil {
			if rule.optional && isMissing(err) {
				continue
			}
			return "", extension.Set{}, err
		}
		*rule.place(&s) = text
	}
	return san, s, nil
}

func isMissing(err error) bool {
	var e *fault.Error
	return errors.As(err, &e) && e.Reason == fault.ClaimMissing
}

// firstClaim is the claim that a template is about, for an error.
func firstClaim(t template) string {
	for _, p := range t {
		if p.claim != "" {
			return p.claim
		}
	}
	return ""
}

func (r *Rules) text(t template, c claim.Set) (string, error) {
	if len(t) == 1 && t[0].literal == "" {
		return r.named(t[0], c)
	}
	var b strings.Builder
	b.Grow(128)
	for _, p := range t {
		b.WriteString(p.literal)
		text, err := r.named(p, c)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// named is the text of what p names, or "" when it names nothing.
func (r *Rules) named(p part, c claim.Set) (string, error) {
	switch {
	case p.claim != "":
		return r.claim(p.claim, c)
	case p.variable != 0:
		return r.choose(&r.variables[p.variable-1], c)
	default:
		return "", nil
	}
}

func (r *Rules) choose(v *variable, c claim.Set) (string, error) {
	for i := range v.cases {
		one := &v.cases[i]
		if one.claim != "" {
			text, err := r.claim(one.claim, c)
			switch {
			case err != nil && one.equals == "" && isMissing(err):
				continue
			case err != nil:
				return "", err
			case one.equals != "" && text != one.equals:
				continue
			}
		}
		return r.text(one.template, c)
	}
	return "", fault.New(fault.ClaimMissing, "no claim of the token gives the rule's %q a value", v.name).With("claim", v.name)
}

// claim is the text of one claim: a string, or what the preset allows beside it.
func (r *Rules) claim(name string, c claim.Set) (string, error) {
	v := c.Get(name)
	switch {
	case v.Kind() == claim.Number && r.numbers[name]:
		digits, ok := v.Whole()
		if !ok {
			return "", claim.Invalid(name, "must be a string or a whole number")
		}
		return digits, nil
	case v.Kind() == claim.Bool && r.booleans[name]:
		return v.Literal(), nil
	default:
		return v.Text(name)
	}
}

// FixesScheme reports whether the rule itself writes the name's scheme, so that
// no claim can choose another, such as spiffe, whose names mean something else.
func (r *Rules) FixesScheme() bool {
	return len(r.san) > 0 && strings.Contains(r.san[0].literal, "://")
}

// NamedAfter is the claim that the name is chiefly made of, for an error about the name.
func (r *Rules) NamedAfter() string { return firstClaim(r.san) }
