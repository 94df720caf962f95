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
	variables  []variable
	fixed      []fixedClaim
	numbers    []string
	booleans   []string
	segments   []string
}

// fixedClaim is a claim with the text that it must be.
type fixedClaim struct {
	name string
	text template // without claims
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
	claim    string
	equals   string
	suffix   string
	template template
}

// Compile turns p into rules, with some constants replaced. All faults of p go
// to f under path, and those of the replacements under constantsPath; the
// rules are only good when there was none.
func (p *Preset) Compile(path string, constants map[string]string, constantsPath string, f *setting.Faults) *Rules {
	c := compiler{preset: p, path: path, faults: f, constants: maps.Clone(p.Constants), used: map[string]bool{}}
	if c.constants == nil {
		c.constants = map[string]string{}
	}
	c.replace(constants, constantsPath)
	if p.Name == "" {
		f.Add(path+".name", "required")
	}
	c.names = append(c.names, slices.Sorted(maps.Keys(p.Variables))...)
	c.checkNames()
	r := &Rules{numbers: slices.Clone(p.WholeNumbers), booleans: slices.Clone(p.Booleans), segments: slices.Clone(p.Segments)}
	for _, name := range c.names {
		r.variables = append(r.variables, c.variable(name, p.Variables[name]))
	}
	r.san = c.template(path+".san", p.SAN, true)
	if p.SANPrefix != "" {
		r.sanPrefix = c.template(path+".san_prefix", p.SANPrefix, true)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Fixed)) {
		c.used[name] = true
		r.fixed = append(r.fixed, fixedClaim{name, c.fixed(path+".fixed."+name, name, p.Fixed[name])})
	}
	for _, kind := range slices.Sorted(maps.Keys(p.Claims)) {
		if claimKinds[kind] == claim.Missing {
			f.Add(path+".claims."+kind, "is no kind of claim; the kinds are %s", list(slices.Sorted(maps.Keys(claimKinds))))
		}
	}
	c.rules(r)
	c.checkUnused()
	for _, name := range slices.Sorted(maps.Keys(c.used)) {
		if _, constant := c.constants[name]; !constant && !slices.Contains(c.names, name) {
			r.Claims = append(r.Claims, name)
		}
	}
	return r
}

// fixed compiles the text that a claim must be.
func (c *compiler) fixed(path, name, text string) template {
	if _, constant := c.constants[name]; constant || slices.Contains(c.names, name) {
		c.faults.Add(path, "%q is a constant or variable, and a claim is expected", name)
	}
	t := c.template(path, text, false)
	for _, p := range t {
		if p.claim != "" {
			c.faults.Add(path, "names the claim %q; only constants are known beforehand", p.claim)
		}
	}
	return t
}

// checkUnused refuses names that no template reads: each is a slip, or looks
// like a rule and is none.
func (c *compiler) checkUnused() {
	for _, name := range slices.Sorted(maps.Keys(c.preset.Constants)) {
		if !c.used[name] {
			c.faults.Add(c.path+".constants."+name, "is used by no template")
		}
	}
	for _, name := range c.names {
		if !c.used[name] {
			c.faults.Add(c.path+".variables."+name, "is used by no template")
		}
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

type compiler struct {
	preset    *Preset
	path      string
	faults    *setting.Faults
	constants map[string]string
	names     []string // of the variables, in order
	used      map[string]bool
}

// replace puts an issuer's own constants in place of the preset's.
func (c *compiler) replace(constants map[string]string, path string) {
	for _, name := range slices.Sorted(maps.Keys(constants)) {
		value, at := constants[name], path+"."+name
		original, known := c.preset.Constants[name]
		switch {
		case !known:
			c.faults.Add(at, "the preset %s has no such constant; it has %s", c.preset.Name, list(slices.Sorted(maps.Keys(c.preset.Constants))))
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
	for _, name := range slices.Sorted(maps.Keys(c.preset.Constants)) {
		if err := checkName(name); err != nil {
			c.faults.Add(c.path+".constants."+name, "%s", err)
		}
		if c.preset.Constants[name] == "" || strings.ContainsAny(c.preset.Constants[name], "{}") {
			c.faults.Add(c.path+".constants."+name, "must be text without braces")
		}
	}
	for _, name := range c.names {
		if err := checkName(name); err != nil {
			c.faults.Add(c.path+".variables."+name, "%s", err)
		}
		if _, both := c.constants[name]; both {
			c.faults.Add(c.path+".variables."+name, "is a constant too; a name means one thing")
		}
	}
}

func (c *compiler) variable(name string, cases []Case) variable {
	path := c.path + ".variables." + name
	v := variable{name: name}
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
			if _, constant := c.constants[one.Claim]; constant || slices.Contains(c.names, one.Claim) {
				c.faults.Add(path, "a case looks at a claim, and %q is a constant or variable", one.Claim)
			}
		}
		v.cases = append(v.cases, choice{claim: one.Claim, equals: one.Equals, suffix: one.Suffix, template: c.template(path, one.Value, false)})
	}
	return v
}

// template compiles one template. Constants become fixed text here, so no
// claim of the same name can ever be asked for.
func (c *compiler) template(path, text string, variables bool) template {
	t, err := parseTemplate(text, func(name string) (part, error) {
		c.used[name] = true
		if constant, ok := c.constants[name]; ok {
			return part{literal: constant}, nil
		}
		if i := slices.Index(c.names, name); i >= 0 {
			if !variables {
				return part{}, errNested
			}
			return part{variable: i + 1}, nil
		}
		return part{claim: name}, nil
	})
	if err != nil {
		c.faults.Add(path, "%s", err)
	}
	return t
}

func (c *compiler) rules(r *Rules) {
	known := extension.Fields()
	for _, section := range []struct {
		name      string
		templates map[string]string
		optional  bool
	}{{"extensions", c.preset.Extensions, false}, {"optional_extensions", c.preset.OptionalExtensions, true}} {
		path := c.path + "." + section.name + "."
		for _, field := range slices.Sorted(maps.Keys(section.templates)) {
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
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:"
	switch {
	case name == "":
		return errors.New("a template names nothing between its braces")
	case strings.Trim(name, characters) != "":
		return fmt.Errorf("the name %q has a character other than letters, digits, _, -, ., / and colon", name)
	}
	return nil
}
