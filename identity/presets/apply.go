package presets

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Apply gives the name and the extensions for a verified token's claims. The
// name isn't percent-encoded yet. The set's issuer and token subject are left for
// the caller. The error is a *fault.Error that names the claim that is missing or
// unfit, never its value.
func (r *Rules) Apply(c claim.Set) (san string, s extension.Set, err error) {
	if err := r.checkFixed(c); err != nil {
		return "", extension.Set{}, err
	}
	if san, err = r.name(c); err != nil {
		return "", extension.Set{}, err
	}
	for i := range r.extensions {
		rule := &r.extensions[i]
		switch text, err := r.text(rule.template, c); {
		case err == nil:
			*rule.place(&s) = text
		case !isMissing(err) || !rule.optional && (!alone(rule.template) || !isBlank(err, c)):
			return "", extension.Set{}, err
		}
	}
	return san, s, nil
}

// name is the text of the SAN's template, in the instance that it must belong to.
func (r *Rules) name(c claim.Set) (string, error) {
	san, err := r.text(r.san, c)
	if err != nil {
		return "", err
	}
	// A name is percent-encoded, so a percent sign of a claim's own would make it
	// look like another name.
	if name := r.blame(r.san, c, func(text string) bool { return strings.Contains(text, "%") }); name != "" && !r.IsURI() {
		return "", claim.Invalid(name, "has a percent sign, and could be taken for another name that is percent-encoded")
	}
	if len(r.sanPrefix) > 0 {
		prefix, err := r.text(r.sanPrefix, c)
		if err != nil {
			return "", err
		}
		if !strings.HasPrefix(san, prefix) {
			return "", foreign(r.Blame(c, func(string) bool { return true }), prefix)
		}
	}
	return san, nil
}

func (r *Rules) checkFixed(c claim.Set) error {
	for _, one := range r.fixed {
		switch got, err := r.claim(one.name, c); {
		case err != nil && !isMissing(err):
			return err
		case err == nil && got != one.text:
			return foreign(one.name, one.text)
		}
	}
	return nil
}

// foreign is the refusal of a token from elsewhere than the rule is for.
func foreign(name, expected string) error {
	return claim.Invalid(name, "doesn't belong to what this issuer's rule is for, "+expected+"; where the vendor's service is your own, its preset_constants must name it").
		With("expected", expected)
}

func isMissing(err error) bool { return err != nil && fault.From(err).Reason == fault.ClaimMissing }

// isBlank reports whether the claim that err misses is there, and empty or null.
func isBlank(err error, c claim.Set) bool {
	v := c.Get(fault.From(err).Metadata["claim"])
	return v.Kind() == claim.Null || v.Kind() == claim.String && v.Literal() == ""
}

// alone reports whether a template is a name with nothing around it.
func alone(t template) bool { return len(t) == 1 && t[0].literal == "" }

// Blame is the first claim of the name's that is unfit, or its first claim where
// none is by itself.
func (r *Rules) Blame(c claim.Set, unfit func(text string) bool) string {
	return cmp.Or(r.blame(r.san, c, unfit), r.blame(r.san, c, func(string) bool { return true }))
}

func (r *Rules) blame(t template, c claim.Set, unfit func(text string) bool) string {
	for _, p := range t {
		switch {
		case p.claim != "":
			if text, err := r.claim(p.claim, c); err == nil && unfit(text) {
				return p.claim
			}
		case p.variable != nil:
			if one, err := r.choose(p.variable, c); err == nil {
				if name := r.blame(one.template, c, unfit); name != "" {
					return name
				}
			}
		}
	}
	return ""
}

func (r *Rules) text(t template, c claim.Set) (string, error) {
	if alone(t) {
		return r.named(t[0], c)
	}
	var space [256]byte // most texts are shorter
	b := space[:0]
	for _, p := range t {
		text, err := r.named(p, c)
		if err != nil {
			return "", err
		}
		b = append(append(b, p.literal...), text...)
	}
	return string(b), nil
}

// named is the text of what p names, or "" when it names nothing.
func (r *Rules) named(p part, c claim.Set) (string, error) {
	switch {
	case p.claim != "":
		return r.claim(p.claim, c)
	case p.variable != nil:
		one, err := r.choose(p.variable, c)
		if err != nil {
			return "", err
		}
		return r.text(one.template, c)
	default:
		return "", nil
	}
}

// choose finds the case of a variable that holds.
func (r *Rules) choose(v *variable, c claim.Set) (*choice, error) {
	for i := range v.cases {
		one := &v.cases[i]
		if one.Claim == "" {
			return one, nil
		}
		text, err := r.claim(one.Claim, c)
		switch {
		case isMissing(err) && one.Equals == "" && one.Suffix == "":
			continue
		case err != nil:
			return nil, err
		case one.Equals != "" && text != one.Equals, !strings.HasSuffix(text, one.Suffix):
			continue
		}
		return one, nil
	}
	last := v.cases[len(v.cases)-1].Claim
	return nil, fault.New(fault.ClaimMissing, "the token's claim %q gives the %s of this issuer's rule no value", last, v.name).With("claim", last)
}

// claim is the text of one claim: a string, or what the preset allows beside it.
func (r *Rules) claim(name string, c claim.Set) (text string, err error) {
	v := c.Get(name)
	switch {
	case v.Kind() == claim.Number && slices.Contains(r.numbers, name):
		var ok bool
		if text, ok = v.Whole(); !ok {
			err = claim.Invalid(name, "must be a string or a whole number")
		}
	case v.Kind() == claim.Bool && slices.Contains(r.booleans, name):
		text = v.Literal()
	default:
		text, err = v.Text(name)
	}
	if err == nil && slices.Contains(r.segments, name) && (text == "." || text == ".." || strings.ContainsAny(text, `/?#@\`)) {
		err = claim.Invalid(name, "must be one segment of a path: without / ? # @ and backslash, and neither . nor ..")
	}
	return text, err
}

// FixesScheme reports whether the rule itself writes the name's scheme, so that
// no claim can choose another, such as spiffe, whose names mean something else.
func (r *Rules) FixesScheme() bool {
	return len(r.san) > 0 && strings.Contains(r.san[0].literal, "://")
}

// FixesHost reports whether the rule itself writes the name's scheme and host, or
// begins with the issuer, which is verified.
func (r *Rules) FixesHost() bool {
	if len(r.san) == 0 {
		return false
	}
	_, rest, found := strings.Cut(r.san[0].literal, "://")
	return found && strings.Contains(rest, "/") || r.san[0].literal == "" && r.san[0].claim == "iss"
}

// IsURI reports whether the name is one claim alone, which then is a URI already.
func (r *Rules) IsURI() bool { return alone(r.san) && r.san[0].claim != "" }
