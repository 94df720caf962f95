package identity

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/presets"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// subject is what a type's rule makes of a token's claims.
type subject struct {
	SAN        SAN
	Issuer     string        // to record in place of the token's own; empty for that
	Extensions extension.Set // without issuer and token subject, which the verifier fills in
}

// provider is the rule of one issuer: pure, without I/O. A claim that it needs
// and that is missing, empty or unfit gives a *fault.Error of kind Denied that
// names the claim.
type provider interface {
	// subject takes the token's `sub`, which is fit for a certificate, and all claims.
	subject(sub string, c claim.Set) (subject, error)
}

// providers makes the rule of each type, and adds the faults of the settings
// that the rule reads to f under path.
var providers = map[Type]func(c *IssuerConfig, path string, f *setting.Faults) provider{
	TypeEmail:      newEmail,
	TypeURI:        newURI,
	TypeUsername:   newUsername,
	TypeSPIFFE:     newSPIFFE,
	TypeKubernetes: func(*IssuerConfig, string, *setting.Faults) provider { return kubernetes{} },
	TypeCI:         newCI,
	TypeChainguard: func(*IssuerConfig, string, *setting.Faults) provider { return chainguard{} },
}

// types lists the types in order, for texts.
func types() string { return setting.List(slices.Sorted(maps.Keys(providers))) }

// email names a person by a verified address.
type email struct {
	unverified bool     // take an address without email_verified
	issuer     []string // path of the claim with the issuer to record
}

func newEmail(c *IssuerConfig, path string, f *setting.Faults) provider {
	e := email{unverified: c.SkipEmailVerification}
	if c.IssuerClaim != "" {
		var err error
		if e.issuer, err = parseClaimPath(c.IssuerClaim); err != nil {
			f.Add(path+".issuer_claim", "%s", err)
		}
	}
	return e
}

func (e email) subject(_ string, c claim.Set) (subject, error) {
	address, err := c.Get("email").Text("email")
	if err != nil {
		return subject{}, err
	}
	// OpenID Connect Core §5.1 has a boolean; some issuers send a string.
	if v := c.Get("email_verified"); !e.unverified && !isTrue(v) {
		return subject{}, fault.New(fault.EmailUnverified, "the token's claim \"email_verified\" is not true; confirm the mail address with the identity provider and sign in again").
			With("claim", "email_verified")
	}
	if err := checkEmail("email", address); err != nil {
		return subject{}, err
	}
	s := subject{SAN: SAN{Email, address}}
	if e.issuer != nil {
		name := strings.Join(e.issuer, ".")
		if s.Issuer, err = claim.At(c, e.issuer).Text(name); err != nil {
			return subject{}, err
		}
	}
	return s, nil
}

func isTrue(v claim.Value) bool {
	return (v.Kind() == claim.Bool || v.Kind() == claim.String) && v.Literal() == "true" ||
		v.Kind() == claim.String && v.Literal() == "True"
}

// uri takes the subject as it is, under one scheme and host.
type uri struct{ origin string }

func newURI(c *IssuerConfig, path string, f *setting.Faults) provider {
	if err := checkOrigin(c.SubjectDomain); err != nil {
		f.Add(path+".subject_domain", "%s", err)
	}
	return uri{origin: c.SubjectDomain}
}

func (u uri) subject(sub string, _ claim.Set) (subject, error) {
	// Bytes are compared, so another case, a port or a user is another origin.
	rest, ok := strings.CutPrefix(sub, u.origin)
	if !ok || rest != "" && rest[0] != '/' {
		return subject{}, fault.New(fault.SubjectDomain, "the token's claim \"sub\" must be a URI that begins with %s/", u.origin).
			With("claim", "sub").With("expected", u.origin)
	}
	if err := checkURI("sub", sub); err != nil {
		return subject{}, err
	}
	return subject{SAN: SAN{URI, sub}}, nil
}

// username puts a domain after the subject.
type username struct{ domain string }

func newUsername(c *IssuerConfig, path string, f *setting.Faults) provider {
	switch {
	case c.SubjectDomain == "":
		f.Add(path+".subject_domain", "required for the type username, such as example.com")
	case !domainName(c.SubjectDomain):
		f.Add(path+".subject_domain", "must be a domain such as example.com")
	}
	return username{domain: c.SubjectDomain}
}

func (u username) subject(sub string, _ claim.Set) (subject, error) {
	if err := checkUsername("sub", sub); err != nil {
		return subject{}, err
	}
	return subject{SAN: SAN{Username, sub + "!" + u.domain}}, nil
}

// spiffe takes a workload's SPIFFE ID in one trust domain.
type spiffe struct{ domain spiffeid.TrustDomain }

func newSPIFFE(c *IssuerConfig, path string, f *setting.Faults) provider {
	if c.SPIFFETrustDomain == "" {
		f.Add(path+".spiffe_trust_domain", "required for the type spiffe, such as example.org")
		return spiffe{}
	}
	domain, err := spiffeid.TrustDomainFromString(c.SPIFFETrustDomain)
	if err != nil || domain.Name() != c.SPIFFETrustDomain {
		f.Add(path+".spiffe_trust_domain", "must be the name of a trust domain, such as example.org")
	}
	return spiffe{domain: domain}
}

func (s spiffe) subject(sub string, _ claim.Set) (subject, error) {
	id, err := spiffeid.FromString(sub)
	if err != nil {
		return subject{}, claim.Invalid("sub", "is not a SPIFFE ID").Because(err)
	}
	if !id.MemberOf(s.domain) {
		return subject{}, fault.New(fault.SubjectDomain, "the token's claim \"sub\" must be a SPIFFE ID in the trust domain %s", s.domain.Name()).
			With("claim", "sub").With("expected", s.domain.Name())
	}
	return subject{SAN: SAN{URI, id.String()}}, nil
}

// kubernetes names a service account.
type kubernetes struct{}

func (kubernetes) subject(_ string, c claim.Set) (subject, error) {
	info := c.Get("kubernetes.io")
	if err := object("kubernetes.io", info); err != nil {
		return subject{}, err
	}
	const namespaceClaim, accountClaim = "kubernetes.io.namespace", "kubernetes.io.serviceaccount.name"
	namespace, err := info.Get("namespace").Text(namespaceClaim)
	if err != nil {
		return subject{}, err
	}
	account, err := info.Get("serviceaccount").Get("name").Text(accountClaim)
	if err != nil {
		return subject{}, err
	}
	// Kubernetes names namespaces by RFC 1123 labels and service accounts by
	// RFC 1123 subdomains, in lower case.
	if strings.Contains(namespace, ".") || !kubernetesName(namespace) {
		return subject{}, claim.Invalid(namespaceClaim, "is not the name of a namespace")
	}
	if !kubernetesName(account) {
		return subject{}, claim.Invalid(accountClaim, "is not the name of a service account")
	}
	return subject{SAN: SAN{URI, "https://kubernetes.io/namespaces/" + namespace + "/serviceaccounts/" + account}}, nil
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

func kubernetesName(s string) bool { return domainName(s) && s == strings.ToLower(s) }

// chainguard names an identity by its issuer and its subject, `<iss>/<sub>`. A
// token says in `act` who acts for the identity; one without was not made by
// assuming it.
type chainguard struct{}

func (chainguard) subject(sub string, c claim.Set) (subject, error) {
	if err := object("act", c.Get("act")); err != nil {
		return subject{}, err
	}
	// The subject is path segments below the issuer, and never leads out of it.
	for _, segment := range strings.Split(sub, "/") {
		if segment == "" || strings.ContainsAny(segment, "?#%") {
			return subject{}, claim.Invalid("sub", "is not the path of an identity")
		}
	}
	name := strings.TrimSuffix(c.Get("iss").Literal(), "/") + "/" + sub
	if err := checkURI("sub", name); err != nil {
		return subject{}, err
	}
	return subject{SAN: SAN{URI, name}}, nil
}

// ci applies a vendor's preset.
type ci struct{ rules *presets.Rules }

func newCI(c *IssuerConfig, path string, f *setting.Faults) provider {
	preset, at := c.InlinePreset, path+".inline_preset"
	switch {
	case c.Preset == "" && preset == nil:
		f.Add(path+".preset", "required for the type ci-provider: one of %s, or an inline_preset", strings.Join(presets.Names(), ", "))
		return ci{}
	case c.Preset != "" && preset != nil:
		f.Add(path+".preset", "is set beside inline_preset; keep one")
		return ci{}
	case preset == nil:
		at = path + ".preset"
		var err error
		if preset, err = presets.Load(c.Preset); err != nil {
			f.Add(at, "%q: %s; the built-in presets are %s", c.Preset, err, strings.Join(presets.Names(), ", "))
			return ci{}
		}
	}
	return ci{rules: preset.Compile(at, c.PresetConstants, path+".preset_constants", f)}
}

func (p ci) subject(_ string, c claim.Set) (subject, error) {
	raw, extensions, err := p.rules.Apply(c)
	if err != nil {
		return subject{}, err
	}
	if !p.rules.FixesScheme() && !strings.HasPrefix(raw, "https://") {
		return subject{}, claim.Invalid(p.rules.Blame(c, func(string) bool { return true }), "must give an https URI")
	}
	encode := encodeURI
	if p.rules.IsURI() {
		encode = func(name, uri string) (string, error) { return uri, checkURI(name, uri) }
	}
	san, err := encode("", raw)
	if err != nil {
		blamed := p.rules.Blame(c, func(text string) bool {
			_, err := encodeURI("", "https://host.example/"+text)
			return err != nil
		})
		_, err = encode(blamed, raw)
		return subject{}, err
	}
	return subject{SAN: SAN{URI, san}, Extensions: extensions}, nil
}

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
