// Package fulcio reads the identity configuration of a Fulcio CA, in its YAML
// and its older JSON form, and says the same in Mayfly's terms.
package fulcio

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/identity"
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
	for _, list := range []struct {
		key     string
		pattern bool
	}{{"oidcissuers", false}, {"metaissuers", true}} {
		entries, err := sections(root[list.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list.key, err)
		}
		for _, url := range slices.Sorted(maps.Keys(entries)) {
			c.issuer(url, entries[url], list.pattern)
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
	if skip, _ := s["skipemailverification"].(bool); skip {
		i.SkipEmailVerification = true
	}
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
	switch {
	case kinds[kind] != "":
		i.Type = kinds[kind]
	case vendorTypes[kind] != "":
		i.Type, i.Preset = identity.TypeCI, vendorTypes[kind]
	default:
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
