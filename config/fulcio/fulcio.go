// Package fulcio reads the identity configuration of a Fulcio CA, in its YAML
// and its older JSON form, and says the same in Mayfly's terms.
package fulcio

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/presets"
)

// MaxBytes is the largest configuration that is read.
const MaxBytes = 1 << 20

// Import is what became of a configuration.
type Import struct {
	Issuers []identity.IssuerConfig
	// Decisions are what had to be decided on the way, for a person to look at:
	// each begins with the issuer or section that it is about.
	Decisions []string
}

// section is a mapping, by its keys without case and separators: that makes one
// of the two forms, `issuer-url` and `IssuerURL`.
type section map[string]any

// Convert reads a configuration. What it gives passes identity.CheckIssuers
// where Fulcio's was sound; the caller checks. The error says what can't be read.
func Convert(data []byte) (*Import, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("is larger than %d bytes", MaxBytes)
	}
	var raw map[string]any
	if err := yaml.Unmarshal(data, &raw); err != nil { // JSON is YAML
		return nil, fmt.Errorf("isn't YAML or JSON: %w", err)
	}
	c := converter{out: new(Import)}
	root := normal(raw)
	var err error
	if c.vendors, err = sections(root["ciissuermetadata"]); err != nil {
		return nil, fmt.Errorf("ci-issuer-metadata: %w", err)
	}
	c.unknown("the document", root, "define", "oidcissuers", "metaissuers", "ciissuermetadata")
	for _, list := range []string{"oidcissuers", "metaissuers"} {
		entries, err := sections(root[list])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		for _, url := range slices.Sorted(maps.Keys(entries)) {
			c.issuer(url, entries[url], list == "metaissuers")
		}
	}
	c.decide("every issuer", "stricter than Fulcio: a token for several audiences whose azp is neither one of ours nor in authorized_parties is refused")
	if slices.ContainsFunc(c.out.Issuers, func(i identity.IssuerConfig) bool { return i.Type == identity.TypeCI }) {
		c.decide("every ci-provider", "stricter than Fulcio: a name with a percent sign of its own is refused, since another one looks like it once it is percent-encoded")
	}
	if len(c.out.Issuers) == 0 {
		return nil, errors.New("names no issuer that could be taken over: is it the identity configuration, with oidc-issuers?")
	}
	return c.out, nil
}

func normal(m map[string]any) section {
	s := section{}
	for key, value := range m {
		s[plain(key)] = value
	}
	return s
}

func plain(key string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(key))
}

// sections reads a mapping of mappings, whose own keys are names.
func sections(v any) (map[string]section, error) {
	all := map[string]section{}
	if v == nil {
		return all, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("a mapping is expected")
	}
	for name, one := range m {
		inner, ok := one.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: a mapping is expected", name)
		}
		all[name] = normal(inner)
	}
	return all, nil
}

func (s section) text(key string) string {
	text, _ := s[key].(string) // another type is as good as absent, and is told by what needs it
	return text
}

type converter struct {
	out     *Import
	vendors map[string]section
}

func (c *converter) decide(about, format string, args ...any) {
	c.out.Decisions = append(c.out.Decisions, about+": "+fmt.Sprintf(format, args...))
}

// unknown tells the keys of s that have no counterpart.
func (c *converter) unknown(about string, s section, known ...string) {
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if !slices.Contains(known, key) {
			c.decide(about, "%s has no counterpart and is left out", key)
		}
	}
}

// kinds is the types that need no more than their name.
var kinds = map[string]identity.Type{
	"email": identity.TypeEmail, "uri": identity.TypeURI, "username": identity.TypeUsername, "spiffe": identity.TypeSPIFFE,
	"kubernetes": identity.TypeKubernetes, "chainguard-identity": identity.TypeChainguard, "ci-provider": identity.TypeCI,
}

// vendorTypes is the CI vendors that were types of their own, and are names in
// ci-issuer-metadata now, with our presets for them.
var vendorTypes = map[string]string{
	"github-workflow": "github", "gitlab-pipeline": "gitlab", "buildkite-job": "buildkite",
	"codefresh-workflow": "codefresh", "circleci-job": "circleci", "buddy-pipeline": "buddy",
}

func (c *converter) issuer(url string, s section, pattern bool) {
	i := identity.IssuerConfig{
		Allow: "true", IssuerClaim: s.text("issuerclaim"), SubjectDomain: s.text("subjectdomain"),
		SPIFFETrustDomain: s.text("spiffetrustdomain"), ChallengeClaim: s.text("challengeclaim"),
	}
	i.SkipEmailVerification, _ = s["skipemailverification"].(bool)
	if own := s.text("issuerurl"); own != "" && own != url && !pattern {
		c.decide(url, "its issuer-url is %s, which is taken", own)
		url = own
	}
	if pattern && strings.Contains(url, "*") {
		i.Pattern = url
	} else {
		i.URL = url
	}
	audience := s.text("clientid")
	if audience == "" {
		c.decide(url, "has no client-id, so no audience: left out; every issuer needs one")
		return
	}
	i.Audiences = []string{audience}
	kind := s.text("type")
	i.Type = kinds[kind]
	if i.Preset = vendorTypes[kind]; i.Preset != "" {
		i.Type = identity.TypeCI
	}
	if i.Type == "" {
		c.decide(url, "its type %q is unknown: left out", kind)
		return
	}
	if i.Type == identity.TypeCI && i.Preset == "" && !c.vendor(&i, url, s.text("ciprovider")) {
		return
	}
	if i.URL == "https://kubernetes.default.svc" {
		i.CAFile, i.BearerTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "/var/run/secrets/kubernetes.io/serviceaccount/token"
		c.decide(url, "takes the pod's CA bundle and service-account token; allow_networks must name the cluster's service network")
	}
	c.unknown(url, s, "issuerurl", "clientid", "type", "ciprovider", "issuerclaim", "subjectdomain", "spiffetrustdomain",
		"challengeclaim", "skipemailverification", "contact", "description")
	c.decide(url, "allow: \"true\", since Fulcio gives a certificate to every identity that the issuer vouches for; narrow it")
	c.out.Issuers = append(c.out.Issuers, i)
}

// otherNames is the extensions whose names differ in more than separators.
var otherNames = map[string]string{
	"githubworkflowtrigger": "github_trigger", "githubworkflowsha": "github_sha", "githubworkflowname": "github_workflow",
	"githubworkflowrepository": "github_repository", "githubworkflowref": "github_ref",
	"sourcerepositoryidentifier": "source_repository_id", "sourcerepositoryowneridentifier": "source_repository_owner_id",
	"sourcerepositoryvisibilityatsigning": "source_repository_visibility",
}

// vendor gives i the rules of a CI vendor: our preset where the configuration's
// templates are the vendor's usual ones, and otherwise a preset of their own.
func (c *converter) vendor(i *identity.IssuerConfig, url, name string) bool {
	metadata, known := c.vendors[name]
	preset := vendorTypes[name]
	switch {
	case !known && preset == "":
		c.decide(url, "ci-issuer-metadata has no %q: left out", name)
		return false
	case !known:
		i.Preset = preset
		c.decide(url, "ci-issuer-metadata has no %s; our preset %s is taken", name, preset)
		return true
	}
	own := &presets.Preset{Name: name, Constants: map[string]string{}, Variables: map[string][]presets.Case{},
		Extensions: map[string]string{}, OptionalExtensions: map[string]string{}}
	b := builder{preset: own, optional: map[string]bool{}, claims: map[string]bool{}}
	if err := b.read(metadata); err != nil {
		c.decide(url, "the templates of %s can't be taken over (%s): left out", name, err)
		return false
	}
	if preset != "" && equivalent(preset, own) {
		i.Preset = preset
		c.decide(url, "the templates of %s are those of our preset %s, which is taken; a host that a token's claim names must be the preset's, or preset_constants say another", name, preset)
		return true
	}
	i.InlinePreset = own
	c.decide(url, "the templates of %s are taken over as an inline_preset; its default-template-values are constants, which no claim overrides", name)
	// The name begins with an address where its text does, or the constant that it begins with.
	start, rest, _ := strings.Cut(own.SAN, "{")
	first, _, _ := strings.Cut(rest, "}")
	if address := start == "" && strings.Contains(own.Constants[first], "://"); !address && !strings.Contains(start, "://") {
		c.decide(url, "a claim of the token writes the host of the name, as in Fulcio; bind it with san_prefix")
	}
	for _, what := range b.stricter {
		c.decide(url, "stricter than Fulcio: %s", what)
	}
	return true
}

// read turns the metadata of one vendor into the preset.
func (b *builder) read(metadata section) error {
	defaults, _ := metadata["defaulttemplatevalues"].(map[string]any)
	for key, value := range defaults {
		text, isText := value.(string)
		switch {
		case !isText:
			return fmt.Errorf("default-template-values.%s isn't text", key)
		case text == "":
			b.optional[key] = true // an empty default is how a claim is made optional
		default:
			b.preset.Constants[key] = text
		}
	}
	templates, _ := metadata["extensiontemplates"].(map[string]any)
	for _, key := range slices.Sorted(maps.Keys(templates)) {
		text, isText := templates[key].(string)
		field := field(key)
		if !isText || field == "" {
			return fmt.Errorf("extension-templates.%s isn't known", key)
		}
		converted, optional, err := b.template(text)
		if err != nil {
			return fmt.Errorf("extension-templates.%s: %w", key, err)
		}
		into, otherwise := b.preset.Extensions, "request is refused"
		if optional {
			into, otherwise = b.preset.OptionalExtensions, "extension is left out"
		}
		into[field] = converted
		if alone := strings.HasPrefix(converted, "{") && strings.IndexByte(converted, '}') == len(converted)-1; !alone && b.lenient {
			b.stricter = append(b.stricter, key+" is a text with a claim in it, which Fulcio writes with a hole where the token lacks the claim; here the "+otherwise)
		}
		b.lenient = false
	}
	san, optional, err := b.template(metadata.text("subjectalternativenametemplate"))
	if err != nil || optional || san == "" {
		return errors.New("subject-alternative-name-template: must be a template of claims that are always there")
	}
	if b.lenient {
		b.stricter = append(b.stricter, "a token without a claim of the name is refused, where Fulcio gives a name with a hole")
	}
	b.preset.SAN = san
	// Fulcio writes any JSON number or boolean as text.
	b.preset.WholeNumbers = slices.Sorted(maps.Keys(b.claims))
	b.preset.Booleans = b.preset.WholeNumbers
	return nil
}

func field(key string) string {
	if name := otherNames[plain(key)]; name != "" {
		return name
	}
	for _, name := range extension.Fields() {
		if plain(name) == plain(key) {
			return name
		}
	}
	return ""
}

const (
	unknownLanguage = "uses more of the template language than names and if"
	hasPipeline     = "uses a pipeline"
)

// builder makes a preset of a vendor's templates.
type builder struct {
	preset   *presets.Preset
	optional map[string]bool
	claims   map[string]bool
	lenient  bool // the template at hand gives something without a claim of its own, in Fulcio
	stricter []string
	err      error // why the template at hand can't be taken over
}

// fail notes the first reason, and gives nothing.
func (b *builder) fail(why string) (converted string) {
	if b.err == nil {
		b.err = errors.New(why)
	}
	return ""
}

// template converts one Go template; text without braces is a claim's name.
func (b *builder) template(text string) (converted string, optional bool, err error) {
	if !strings.Contains(text, "{{") {
		name, opt := b.name(text)
		return name, opt, nil
	}
	trees, err := parse.Parse("t", text, "", "", map[string]any{"eq": true, "index": true})
	if err != nil {
		return "", false, errors.New("isn't a template that could be read")
	}
	b.err = nil
	nodes := trees["t"].Root.Nodes
	converted, optional = b.nodes(nodes)
	// Of a claim that isn't there, index makes an empty text, which Fulcio leaves out.
	return converted, optional || len(nodes) == 1 && b.lenient, b.err
}

func (b *builder) nodes(nodes []parse.Node) (converted string, optional bool) {
	var out strings.Builder
	for _, n := range nodes {
		var text string
		var opt bool
		switch n := n.(type) {
		case *parse.TextNode:
			if text = string(n.Text); strings.ContainsAny(text, "{}") {
				b.fail("has a brace")
			}
		case *parse.ActionNode:
			text, opt = b.name(b.claimOf(n.Pipe))
			b.lenient = b.lenient || opt || byIndex(n.Pipe)
		case *parse.IfNode:
			text, opt = b.condition(n)
		default:
			b.fail(unknownLanguage)
		}
		out.WriteString(text)
		optional = optional || opt
	}
	return out.String(), optional
}

// byIndex reports whether a pipeline asks for a claim that may be missing.
func byIndex(p *parse.PipeNode) bool { return strings.Contains(p.String(), "index ") }

// name is a claim or constant in braces, and whether it may be missing.
func (b *builder) name(name string) (string, bool) {
	if _, constant := b.preset.Constants[name]; !constant {
		b.claims[name] = true
	}
	return "{" + name + "}", b.optional[name]
}

// claimOf is the claim that `.name` or `index . "name"` names, in brackets or not.
func (b *builder) claimOf(args ...parse.Node) string {
	if len(args) == 1 {
		switch a := args[0].(type) {
		case *parse.FieldNode:
			if len(a.Ident) == 1 {
				return a.Ident[0]
			}
		case *parse.PipeNode:
			if len(a.Decl) > 0 || len(a.Cmds) != 1 {
				return b.fail(hasPipeline)
			}
			return b.claimOf(a.Cmds[0].Args...)
		}
	}
	if len(args) == 3 && args[0].String() == "index" && args[1].String() == "." {
		if s, ok := args[2].(*parse.StringNode); ok { // #nosec G602 -- there are three
			return s.Text
		}
	}
	return b.fail(unknownLanguage)
}

// condition turns an if over one claim into a variable.
func (b *builder) condition(n *parse.IfNode) (converted string, optional bool) {
	if len(n.Pipe.Cmds) != 1 {
		return b.fail(hasPipeline), false
	}
	var one presets.Case
	args := n.Pipe.Cmds[0].Args
	if len(args) == 3 && args[0].String() == "eq" {
		s, isText := args[2].(*parse.StringNode)
		if !isText {
			return b.fail("compares with something else than text"), false
		}
		one.Equals, args = s.Text, args[1:2]
	}
	one.Claim = b.claimOf(args...)
	b.claims[one.Claim] = true
	b.lenient = b.lenient || byIndex(n.Pipe)
	one.Value, _ = b.nodes(n.List.Nodes)
	cases := []presets.Case{one}
	otherwise := ""
	if n.ElseList != nil {
		otherwise, _ = b.nodes(n.ElseList.Nodes)
	}
	// An else of two quotes is CircleCI's slip for nothing.
	absent := otherwise == "" || otherwise == `""`
	if !absent {
		if byIndex(n.Pipe) {
			b.stricter = append(b.stricter, "where the token lacks the claim "+one.Claim+", a text that is chosen by it is left out, where Fulcio takes the else")
		}
		cases = append(cases, presets.Case{Value: otherwise})
	}
	name := "choice_" + strconv.Itoa(len(b.preset.Variables)+1)
	b.preset.Variables[name] = cases
	return "{" + name + "}", absent
}

// equivalent reports whether our preset and the converted one say the same of tokens
// that have every claim which the converted one names, of those that lack what
// may be lacking, and of each way that a choice can go.
func equivalent(name string, converted *presets.Preset) bool {
	const issuer = "https://issuer.example"
	var both [2]*identity.Verifier
	for n, c := range []identity.IssuerConfig{{Preset: name}, {InlinePreset: converted}} {
		c.URL, c.Type, c.Audiences, c.Allow = issuer, identity.TypeCI, []string{"a"}, "true"
		var err error
		if both[n], err = identity.NewVerifier([]identity.IssuerConfig{c}, identity.Options{}); err != nil {
			return false
		}
	}
	return !slices.ContainsFunc(samples(issuer, converted), func(claims map[string]any) bool {
		text, err := json.Marshal(claims)
		a, b := both[0].ExplainClaims(string(text)), both[1].ExplainClaims(string(text))
		return err != nil || a.Refusal != nil || b.Refusal != nil || a.SAN != b.SAN || a.SANType != b.SANType || a.Set != b.Set
	})
}

// samples are tokens' claims: all of them with values of their own, then with
// each choice taken, and then without each claim that the preset can do without.
func samples(issuer string, p *presets.Preset) []map[string]any {
	all := map[string]any{"iss": issuer, "aud": "a", "sub": "subject"}
	for _, name := range p.WholeNumbers {
		switch name {
		case "ci_config_ref_uri": // GitLab's claim begins with its host, which our preset checks
			all[name] = "gitlab.com/group/project//.gitlab-ci.yml@refs/heads/main"
		case "scm_repo_url", "oidc.circleci.com/vcs-origin":
			all[name] = "https://git.example/acme/app"
		default:
			all[name] = "value-of-" + strings.ReplaceAll(plain(name), "/", ".") // most claims are one segment of a path
		}
	}
	out := []map[string]any{all}
	for _, cases := range p.Variables {
		if one := cases[0]; one.Equals != "" {
			chosen := maps.Clone(all)
			chosen[one.Claim] = one.Equals
			out = append(out, chosen)
		}
	}
	for _, template := range p.OptionalExtensions {
		if name := strings.Trim(template, "{}"); slices.Contains(p.WholeNumbers, name) && template == "{"+name+"}" {
			less := maps.Clone(all)
			delete(less, name)
			out = append(out, less)
		}
	}
	return out
}
