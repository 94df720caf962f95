package identity

import (
	"cmp"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// rule is what a type makes of a token's claims: pure, without I/O. It gives p, whose
// subject is the token's `sub` and fit for a certificate, its name, and where it says
// so another issuer to record and extensions. A claim that it needs and that is
// missing, empty or unfit gives a *fault.Error of kind Denied that names the claim.
type rule func(p *Principal, c claim.Set) error

// rules makes the rule of each type, and adds the faults of the settings that the
// rule reads to f under path.
var rules = map[Type]func(i *issuer, path string, f *setting.Faults) rule{
	TypeEmail:      newEmail,
	TypeURI:        newURI,
	TypeUsername:   newUsername,
	TypeSPIFFE:     newSPIFFE,
	TypeKubernetes: func(*issuer, string, *setting.Faults) rule { return kubernetes },
	TypeCI:         newCI,
	TypeChainguard: func(*issuer, string, *setting.Faults) rule { return chainguard },
}

// types lists the types in order, for texts.
func types() string { return setting.List(slices.Sorted(maps.Keys(rules))) }

// newEmail names a person by a verified address.
func newEmail(i *issuer, path string, f *setting.Faults) rule {
	verify, issuerPath := !i.config.SkipEmailVerification, []string(nil)
	if i.config.IssuerClaim != "" {
		var err error
		if issuerPath, err = parseClaimPath(i.config.IssuerClaim); err != nil {
			f.Add(path+".issuer_claim", "%s", err)
		}
	}
	return func(p *Principal, c claim.Set) error {
		address, err := c.Get("email").Text("email")
		if err != nil {
			return err
		}
		// OpenID Connect Core §5.1 has a boolean; some issuers send a string.
		if verify && !isTrue(c.Get("email_verified")) {
			return fault.New(fault.EmailUnverified, "the token's claim \"email_verified\" is not true; confirm the mail address with the identity provider and sign in again").
				With("claim", "email_verified")
		}
		if err := checkEmail("email", address); err != nil {
			return err
		}
		if issuerPath != nil {
			vouching, err := claim.At(c, issuerPath).Text(strings.Join(issuerPath, "."))
			if err != nil {
				return err
			}
			p.issuer = vouching
		}
		p.san = SAN{Email, address}
		return nil
	}
}

func isTrue(v claim.Value) bool {
	return (v.Kind() == claim.Bool || v.Kind() == claim.String) && v.Literal() == "true" ||
		v.Kind() == claim.String && v.Literal() == "True"
}

// newURI takes the subject as it is, under one scheme and host.
func newURI(i *issuer, path string, f *setting.Faults) rule {
	origin := i.config.SubjectDomain
	if err := checkOrigin(origin); err != nil {
		f.Add(path+".subject_domain", "%s", err)
	}
	return func(p *Principal, _ claim.Set) error {
		// Bytes are compared, so another case, a port or a user is another origin.
		rest, ok := strings.CutPrefix(p.subject, origin)
		if !ok || rest != "" && rest[0] != '/' {
			return fault.New(fault.SubjectDomain, "the token's claim \"sub\" must be a URI that begins with %s/", origin).With("claim", "sub").With("expected", origin)
		}
		return p.named("sub", p.subject)
	}
}

// newUsername puts a domain after the subject.
func newUsername(i *issuer, path string, f *setting.Faults) rule {
	domain := i.config.SubjectDomain
	switch {
	case domain == "":
		f.Add(path+".subject_domain", "required for the type username, such as example.com")
	case !domainName(domain):
		f.Add(path+".subject_domain", "must be a domain such as example.com")
	}
	return func(p *Principal, _ claim.Set) error {
		if err := checkUsername("sub", p.subject); err != nil {
			return err
		}
		p.san = SAN{Username, p.subject + "!" + domain}
		return nil
	}
}

// newSPIFFE takes a workload's SPIFFE ID in one trust domain.
func newSPIFFE(i *issuer, path string, f *setting.Faults) rule {
	domain, err := spiffeid.TrustDomainFromString(i.config.SPIFFETrustDomain)
	switch name := i.config.SPIFFETrustDomain; {
	case name == "":
		f.Add(path+".spiffe_trust_domain", "required for the type spiffe, such as example.org")
	case err != nil || domain.Name() != name:
		f.Add(path+".spiffe_trust_domain", "must be the name of a trust domain, such as example.org")
	}
	return func(p *Principal, _ claim.Set) error {
		id, err := spiffeid.FromString(p.subject)
		if err != nil {
			return claim.Invalid("sub", "is not a SPIFFE ID").Because(err)
		}
		if !id.MemberOf(domain) {
			return fault.New(fault.SubjectDomain, "the token's claim \"sub\" must be a SPIFFE ID in the trust domain %s", domain.Name()).
				With("claim", "sub").With("expected", domain.Name())
		}
		p.san = SAN{URI, id.String()}
		return nil
	}
}

// named has p named by a URI, for which the named claim answers.
func (p *Principal) named(claimName, uri string) error {
	if err := checkURI(claimName, uri); err != nil {
		return err
	}
	p.san = SAN{URI, uri}
	return nil
}

// kubernetes names a service account.
func kubernetes(p *Principal, c claim.Set) error {
	info := c.Get("kubernetes.io")
	if err := object("kubernetes.io", info); err != nil {
		return err
	}
	const namespaceClaim, accountClaim = "kubernetes.io.namespace", "kubernetes.io.serviceaccount.name"
	namespace, err := info.Get("namespace").Text(namespaceClaim)
	account, accountErr := info.Get("serviceaccount").Get("name").Text(accountClaim)
	if err := cmp.Or(err, accountErr); err != nil {
		return err
	}
	// Kubernetes names namespaces by RFC 1123 labels and service accounts by
	// RFC 1123 subdomains, in lower case.
	fit := func(s string) bool { return domainName(s) && s == strings.ToLower(s) }
	switch {
	case strings.Contains(namespace, ".") || !fit(namespace):
		return claim.Invalid(namespaceClaim, "is not the name of a namespace")
	case !fit(account):
		return claim.Invalid(accountClaim, "is not the name of a service account")
	}
	p.san = SAN{URI, "https://kubernetes.io/namespaces/" + namespace + "/serviceaccounts/" + account}
	return nil
}

// object refuses the named claim where it isn't an object.
func object(name string, v claim.Value) error {
	switch v.Kind() {
	case claim.Object:
		return nil
	case claim.Missing, claim.Null:
		_, err := v.Text(name)
		return err
	default:
		return claim.Invalid(name, "must be an object and is "+v.Kind().String())
	}
}

// chainguard names an identity by its issuer and its subject, `<iss>/<sub>`. A
// token says in `act` who acts for the identity; one without was not made by
// assuming it.
func chainguard(p *Principal, c claim.Set) error {
	if err := object("act", c.Get("act")); err != nil {
		return err
	}
	// The subject is path segments below the issuer, and never leads out of it.
	for segment := range strings.SplitSeq(p.subject, "/") {
		if segment == "" || strings.ContainsAny(segment, "?#%") {
			return claim.Invalid("sub", "is not the path of an identity")
		}
	}
	return p.named("sub", strings.TrimSuffix(c.Get("iss").Literal(), "/")+"/"+p.subject)
}

// newCI applies a vendor's preset.
func newCI(i *issuer, path string, f *setting.Faults) rule {
	c, builtIn := &i.config, strings.Join(presets.Names(), ", ")
	preset, at := c.InlinePreset, path+".inline_preset"
	switch {
	case c.Preset == "" && preset == nil:
		f.Add(path+".preset", "required for the type ci-provider: one of %s, or an inline_preset", builtIn)
		return nil
	case c.Preset != "" && preset != nil:
		f.Add(path+".preset", "is set beside inline_preset; keep one")
		return nil
	case preset == nil:
		at = path + ".preset"
		var err error
		if preset, err = presets.Load(c.Preset); err != nil {
			f.Add(at, "%q: %s; the built-in presets are %s", c.Preset, err, builtIn)
			return nil
		}
	}
	rules := preset.Compile(at, c.PresetConstants, path+".preset_constants", f)
	i.presetReads = rules.Claims
	return func(p *Principal, c claim.Set) error {
		raw, extensions, err := rules.Apply(c)
		if err != nil {
			return err
		}
		if !rules.FixesScheme() && !strings.HasPrefix(raw, "https://") {
			return claim.Invalid(rules.Blame(c, func(string) bool { return true }), "must give an https URI")
		}
		encode := encodeURI
		if rules.IsURI() {
			encode = func(name, uri string) (string, error) { return uri, checkURI(name, uri) }
		}
		san, err := encode("", raw)
		if err != nil {
			_, err = encode(rules.Blame(c, func(text string) bool {
				_, err := encodeURI("", "https://host.example/"+text)
				return err != nil
			}), raw)
			return err
		}
		p.san, p.extensions = SAN{URI, san}, extensions
		return nil
	}
}

var (
	claimPath   = regexp.MustCompile(`^\$(\.[A-Za-z0-9_-]+|\['[^'\\]+'\])+$`)
	claimMember = regexp.MustCompile(`\.([A-Za-z0-9_-]+)|\['([^'\\]+)'\]`)
)

// parseClaimPath reads the part of JSONPath (RFC 9535 §2.5.1) that names one
// member: `$.federated_claims.connector_id`, or `$['a.b'].c` for a name with
// other characters than letters, digits, `_` and `-`.
func parseClaimPath(s string) (path []string, err error) {
	if len(s) > maxIssuer || !claimPath.MatchString(s) {
		return nil, errors.New("must be a path such as $.federated_claims.connector_id or $['example.com/org'].name")
	}
	for _, m := range claimMember.FindAllStringSubmatch(s, -1) {
		path = append(path, m[1]+m[2])
	}
	return path, nil
}
