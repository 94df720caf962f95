package presets

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Rules is a compiled preset: immutable, and safe for concurrent use.
type Rules struct {
	// Claims are those that its templates read, in order.
	Claims []string

	san        template
	sanPrefix  template
	extensions []rule
	fixed      []fixedClaim
	numbers    []string
	booleans   []string
	segments   []string
}

// fixedClaim is a claim with the text that it must be.
type fixedClaim struct {
	name string
	text string
}

type rule struct {
	place    func(*extension.Set) *string
	template template
	optional bool
}

type variable struct {
	name  string
	cases []choice
}

type choice struct {
	Case
	template template
}

type compiler struct {
	preset    *Preset
	path      string
	faults    *setting.Faults
	constants map[string]string
	variables map[string]*variable
	used      map[string]bool
}

// Compile turns p into rules, with some constants replaced. All faults of p go
// to f under path, and those of the replacements under constantsPath; the
// rules are only good when there was none.
func (p *Preset) Compile(path string, constants map[string]string, constantsPath string, f *setting.Faults) *Rules {
	c := compiler{preset: p, path: path, faults: f, constants: map[string]string{}, variables: map[string]*variable{}, used: map[string]bool{}}
	maps.Copy(c.constants, p.Constants)
	c.replace(constants, constantsPath)
	f.When(p.Name == "", path+".name", "required")
	for name := range p.Variables {
		c.variables[name] = &variable{name: name}
	}
	c.checkNames()
	r := &Rules{numbers: slices.Clone(p.WholeNumbers), booleans: slices.Clone(p.Booleans), segments: slices.Clone(p.Segments)}
	for _, name := range keys(p.Variables) {
		c.variables[name].cases = c.cases(path+".variables."+name, p.Variables[name])
	}
	r.san = c.template(path+".san", p.SAN, true)
	if p.SANPrefix != "" {
		r.sanPrefix = c.template(path+".san_prefix", p.SANPrefix, true)
	}
	for _, name := range keys(p.Fixed) {
		r.fixed = append(r.fixed, fixedClaim{name, c.fixed(path+".fixed."+name, name, p.Fixed[name])})
	}
	for _, kind := range keys(p.Claims) {
		f.When(claimKinds[kind] == claim.Missing, path+".claims."+kind, "is no kind of claim; the kinds are %s", list(keys(claimKinds)))
	}
	c.rules(r)
	c.checkUnused()
	for _, name := range keys(c.used) {
		if c.isClaim(name) {
			r.Claims = append(r.Claims, name)
		}
	}
	return r
}

// keys are in their order: faults always come in one.
func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// isClaim reports whether a name stands for a claim: whatever is neither a constant
// nor a variable does.
func (c *compiler) isClaim(name string) bool {
	_, constant := c.constants[name]
	return !constant && c.variables[name] == nil
}

// fixed compiles the text that a claim must be.
func (c *compiler) fixed(path, name, text string) (fixed string) {
	c.used[name] = true
	if !c.isClaim(name) {
		c.faults.Add(path, "%q is a constant or variable, and a claim is expected", name)
	}
	for _, p := range c.template(path, text, false) {
		fixed += p.literal
		if p.claim != "" {
			c.faults.Add(path, "names the claim %q; only constants are known beforehand", p.claim)
		}
	}
	return fixed
}

// checkUnused refuses names that no template reads: each is a slip, or looks
// like a rule and is none.
func (c *compiler) checkUnused() {
	unused := func(path, name string) {
		if !c.used[name] {
			c.faults.Add(c.path+path+name, "is used by no template")
		}
	}
	for _, name := range keys(c.preset.Constants) {
		unused(".constants.", name)
	}
	for _, name := range keys(c.variables) {
		unused(".variables.", name)
	}
	for _, list := range []struct {
		field  string
		claims []string
	}{{"whole_numbers", c.preset.WholeNumbers}, {"booleans", c.preset.Booleans}, {"segments", c.preset.Segments}} {
		for i, name := range list.claims {
			if at := setting.Index(c.path+"."+list.field, i); !c.used[name] {
				c.faults.Add(at, "%q is a claim that no template uses", name)
			} else if slices.Index(list.claims, name) < i {
				c.faults.Add(at, "%q is listed twice", name)
			}
		}
	}
}

// replace puts an issuer's own constants in place of the preset's.
func (c *compiler) replace(constants map[string]string, path string) {
	for _, name := range keys(constants) {
		value, at := constants[name], path+"."+name
		original, known := c.preset.Constants[name]
		switch {
		case !known:
			c.faults.Add(at, "the preset %s has no such constant; it has %s", c.preset.Name, list(keys(c.preset.Constants)))
		case strings.HasPrefix(original, "https://") && !plainURL(value):
			c.faults.Add(at, "must be an https URL without query, fragment, user or final slash, such as %s", original)
		default:
			c.constants[name] = value
		}
	}
}

func plainURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && !u.ForceQuery &&
		u.Fragment == "" && !strings.HasSuffix(s, "/") && !strings.HasSuffix(s, "#") && u.String() == s
}

func (c *compiler) checkNames() {
	check := func(at, name string) {
		if err := checkName(name); err != nil {
			c.faults.Add(at, "%s", err)
		}
	}
	for _, name := range keys(c.preset.Constants) {
		text, at := c.preset.Constants[name], c.path+".constants."+name
		check(at, name)
		if text == "" || strings.ContainsAny(text, "{}") {
			c.faults.Add(at, "must be text without braces")
		}
	}
	for _, name := range keys(c.variables) {
		at := c.path + ".variables." + name
		check(at, name)
		if _, both := c.constants[name]; both {
			c.faults.Add(at, "is a constant too; a name means one thing")
		}
	}
}

func (c *compiler) cases(path string, cases []Case) (compiled []choice) {
	if len(cases) == 0 {
		c.faults.Add(path, "needs at least one case")
	}
	for i, one := range cases {
		if one.Claim == "" && (one.Equals != "" || one.Suffix != "" || i < len(cases)-1) {
			c.faults.Add(path, "a case without a claim always holds, so it has no equals and no suffix, and is the last")
		}
		if one.Claim != "" {
			if err := checkName(one.Claim); err != nil {
				c.faults.Add(path, "%s", err)
			}
			c.used[one.Claim] = true
			if !c.isClaim(one.Claim) {
				c.faults.Add(path, "a case looks at a claim, and %q is a constant or variable", one.Claim)
			}
		}
		compiled = append(compiled, choice{one, c.template(path, one.Value, false)})
	}
	return compiled
}

func (c *compiler) rules(r *Rules) {
	known := extension.Fields()
	for _, section := range []struct {
		name      string
		templates map[string]string
		optional  bool
	}{{"extensions", c.preset.Extensions, false}, {"optional_extensions", c.preset.OptionalExtensions, true}} {
		path := c.path + "." + section.name + "."
		for _, field := range keys(section.templates) {
			if !slices.Contains(known, field) {
				c.faults.Add(path+field, "is no extension; the extensions are %s", list(known))
				continue
			}
			if _, both := c.preset.Extensions[field]; both && section.optional {
				c.faults.Add(path+field, "is among the extensions too; keep one")
			}
			t := c.template(path+field, section.templates[field], true)
			r.extensions = append(r.extensions, rule{place: extension.Place(field), template: t, optional: section.optional})
		}
	}
}

func list(names []string) string {
	return cmp.Or(strings.Join(names, ", "), "none")
}

// part is a piece of a compiled template: fixed text, then what is named after it.
type part struct {
	literal  string
	claim    string    // the claim whose text follows, if any
	variable *variable // or the variable that follows
}

type template []part

// maxTemplate bounds a template, in bytes.
const maxTemplate = 1024

// template compiles one template.
func (c *compiler) template(path, text string, variables bool) template {
	t, err := c.parse(text, variables)
	if err != nil {
		c.faults.Add(path, "%s", err)
	}
	return t
}

// parse splits `text{name}text`. Constants become fixed text here, so no claim of the
// same name can ever be asked for.
func (c *compiler) parse(s string, variables bool) (out template, err error) {
	switch {
	case s == "":
		return nil, errors.New("required")
	case len(s) > maxTemplate:
		return nil, fmt.Errorf("the template is longer than %d bytes", maxTemplate)
	}
	literal := ""
	for s != "" {
		text, rest, found := strings.Cut(s, "{")
		if strings.Contains(text, "}") {
			return nil, errors.New("the template closes a brace that it didn't open")
		}
		literal += text
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, errors.New("the template doesn't close a brace")
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		c.used[name], s = true, after
		p := part{variable: c.variables[name]}
		constant, fixed := c.constants[name]
		switch {
		case fixed:
			literal += constant
			continue
		case p.variable == nil:
			p.claim = name
		case !variables:
			return nil, errors.New("a variable names claims and constants, not another variable")
		}
		p.literal, literal = literal, ""
		out = append(out, p)
	}
	if literal != "" {
		out = append(out, part{literal: literal})
	}
	return out, nil
}

// checkName accepts the names that vendors give their claims, such as
// `run_id` and `oidc.circleci.com/project-id`.
func checkName(name string) error {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:"
	switch {
	case name == "":
		return errors.New("a template names nothing between its braces")
	case strings.Trim(name, characters) != "":
		return fmt.Errorf("the name %q has a character other than letters, digits, _, -, ., / and colon", name)
	}
	return nil
}
