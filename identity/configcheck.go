package identity

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	defaultLifetime = 24 * time.Hour
	defaultLeeway   = 60 * time.Second
	mostLeeway      = 10 * time.Minute
	maxIssuer       = 1024 // bytes of an issuer's URL or pattern
	maxAudience     = 512  // bytes
)

// CheckIssuers adds every fault of the list at path to f. It does no I/O.
func CheckIssuers(path string, issuers []IssuerConfig, f *setting.Faults) {
	compile(path, issuers, f)
}

// compile checks the list and makes what a Verifier runs on: the same code, so
// that what was checked is what runs. The result is good when f stayed empty.
func compile(path string, issuers []IssuerConfig, f *setting.Faults) []*issuer {
	f.When(len(issuers) == 0, path, "required: at least one issuer whose tokens are accepted")
	compiled := make([]*issuer, len(issuers))
	for i := range issuers {
		at := setting.Index(path, i)
		compiled[i] = compileOne(at, &issuers[i], f)
		for j := range i {
			checkPair(at, setting.Index(path, j), compiled[i], compiled[j], f)
		}
	}
	return compiled
}

// checkPair refuses two entries of which a token couldn't tell which is meant.
func checkPair(at, other string, a, b *issuer, f *setting.Faults) {
	if a.name() == b.name() && a.name() != "" {
		checkSameIssuer(at, other, a, b, f)
		return
	}
	for i, alias := range a.config.Aliases {
		f.When(alias == b.config.URL || slices.Contains(b.config.Aliases, alias), setting.Index(at+".aliases", i), "%s stands for another issuer in %s; keep one", claim.Quote(alias), other)
	}
	f.When(slices.Contains(b.config.Aliases, a.config.URL), at+".url", "is an alias of the issuer in %s; keep one", other)
	if a.pattern.parts == nil || b.pattern.parts == nil {
		return
	}
	switch a.pattern.compare(&b.pattern) {
	case equal:
		f.Add(at+".pattern", "matches the same issuers as %s.pattern; keep one", other)
	case crossing:
		f.Add(at+".pattern", "matches some issuers that %s.pattern matches too, and neither is the more specific; write one of them more narrowly", other)
	}
}

// checkSameIssuer accepts a second entry for an issuer when the audience always
// tells the two apart, and they don't differ in how its keys are fetched.
func checkSameIssuer(at, other string, a, b *issuer, f *setting.Faults) {
	for i, audience := range a.config.Audiences {
		if slices.Contains(b.config.Audiences, audience) {
			f.Add(setting.Index(at+".audiences", i), "%s is among the audiences of %s too, which is for the same issuer; keep one", claim.Quote(audience), other)
		}
	}
	f.When(!slices.Equal(a.config.Aliases, b.config.Aliases), at+".aliases", "must be the same as in %s, which is for the same issuer", other)
	f.When(!reflect.DeepEqual(a.keysConfig, b.keysConfig), at, "is for the same issuer as %s, and says otherwise how its keys are had; such settings must be the same in both", other)
}

func compileOne(path string, c *IssuerConfig, f *setting.Faults) *issuer {
	i := &issuer{config: *c}
	switch {
	case c.URL == "" && c.Pattern == "":
		f.Add(path+".url", "required: the issuer as its tokens write it, or a pattern")
	case c.URL != "" && c.Pattern != "":
		f.Add(path+".url", "is set beside pattern; keep one")
	case c.URL != "":
		if err := c.checkURL(); err != nil {
			f.Add(path+".url", "%s", err)
		}
	default:
		var err error
		if i.pattern, err = compilePattern(c.Pattern); err != nil {
			f.Add(path+".pattern", "%s", err)
		}
	}
	c.checkAliases(path, f)
	f.When(len(c.Audiences) == 0, path+".audiences", "required: at least one, such as sigstore")
	checkParties(path+".audiences", "aud", c.Audiences, true, f)
	if c.Type == "" {
		f.Add(path+".type", "required: one of %s", types())
	} else if newRule := rules[c.Type]; newRule == nil {
		f.Add(path+".type", "%q is unknown; the types are %s", c.Type, types())
	} else {
		i.rule = newRule(i, path, f)
		checkUnused(path, c, f)
	}
	i.policy = policy.New(path, policy.Settings{Allow: c.Allow, Lifetime: c.Lifetime, MaxLifetime: c.MaxLifetime, Profiles: c.Profiles}, f)
	i.config.checkTokens(path, f)
	i.keysConfig = c.keys()
	i.keysConfig.Check(path, f)
	return i
}

// checkURL accepts any text as an issuer that nothing is fetched from by its URL.
func (c *IssuerConfig) checkURL() error {
	err := checkIssuerURL(c.URL, c.AllowInsecureLoopback)
	switch {
	case err == nil || c.Type == TypeChainguard: // the names in certificates begin with it
		return err
	case c.JWKSURL != "" || c.JWKSFile != "":
		return checkIssuerText(c.URL)
	default:
		return fmt.Errorf("%w; any text that the issuer's tokens have as iss is accepted beside jwks_url or jwks_file", err)
	}
}

// checkIssuerText accepts what a certificate may record as an issuer.
func checkIssuerText(s string) error {
	if s == "" || len(s) > maxIssuer || !all(s, uriByte) {
		return fmt.Errorf("must be 1 to %d bytes of what a URL may hold, without spaces", maxIssuer)
	}
	return nil
}

func (c *IssuerConfig) checkAliases(path string, f *setting.Faults) {
	if len(c.Aliases) > 0 && (c.Pattern != "" || c.Type == TypeChainguard) {
		f.Add(path+".aliases", "has no meaning for a pattern, nor for the type %s, whose names begin with the token's own iss", TypeChainguard)
	}
	checkEach(path+".aliases", c.Aliases, true, f, func(alias string) error {
		if alias == c.URL {
			return errTwice
		}
		return checkIssuerText(alias)
	})
}

var errTwice = errors.New("is listed twice")

// checkEach checks the entries of a list, of which none may be there twice where once is set.
func checkEach(path string, list []string, once bool, f *setting.Faults, check func(string) error) {
	for i, one := range list {
		err := check(one)
		if err == nil && once && slices.Index(list, one) < i {
			err = errTwice
		}
		f.When(err != nil, setting.Index(path, i), "%s", err)
	}
}

// checkIssuerURL accepts what an issuer may be (OpenID Connect Core §2: https
// with a host, and without query and fragment) in its one normal spelling.
func checkIssuerURL(s string, insecure bool) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.String() != s || u.Host == "" || u.Opaque != "" || !all(s, uriByte) || len(s) > maxIssuer:
		return errors.New("must be a URL with a host, such as https://accounts.example.com")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return errors.New("must have no user, query or fragment")
	case u.Scheme == "http" && insecure && !loopback.Host(u.Hostname()):
		return errors.New("must be https: allow_insecure_loopback is for localhost, 127.0.0.1 and [::1] alone")
	case u.Scheme == "http" && !insecure && loopback.Host(u.Hostname()):
		return errors.New("must be https; for development, allow_insecure_loopback accepts http on a loopback address")
	case u.Scheme != "https" && u.Scheme != "http", u.Scheme == "http" && !insecure:
		return errors.New("must be https")
	case u.Host != strings.ToLower(u.Host):
		return errors.New("must have its host in lower case")
	case u.Port() == "443" && u.Scheme == "https" || u.Port() == "80" && u.Scheme == "http" || strings.HasSuffix(u.Host, ":"):
		return errors.New("must leave out the default port")
	case dotSegments(u.EscapedPath()):
		return errors.New("must have no path segment `.` or `..`, and no encoded dot or slash")
	}
	return nil
}

// checkParties checks what the named claim is compared with.
func checkParties(path, claimName string, parties []string, once bool, f *setting.Faults) {
	checkEach(path, parties, once, f, func(party string) error {
		switch {
		case party == "":
			return errors.New("must not be empty")
		case len(party) > maxAudience || claim.Fit(claimName, party) != nil:
			return fmt.Errorf("must be at most %d bytes without control characters", maxAudience)
		}
		return nil
	})
}

// checkUnused refuses settings that the type's rule doesn't read: they would
// look like a restriction and be none.
func checkUnused(path string, c *IssuerConfig, f *setting.Faults) {
	for _, s := range []struct {
		field string
		set   bool
		types []Type
	}{
		{"subject_domain", c.SubjectDomain != "", []Type{TypeURI, TypeUsername}},
		{"spiffe_trust_domain", c.SPIFFETrustDomain != "", []Type{TypeSPIFFE}},
		{"skip_email_verification", c.SkipEmailVerification, []Type{TypeEmail}},
		{"issuer_claim", c.IssuerClaim != "", []Type{TypeEmail}},
		{"preset", c.Preset != "", []Type{TypeCI}},
		{"inline_preset", c.InlinePreset != nil, []Type{TypeCI}},
		{"preset_constants", len(c.PresetConstants) > 0, []Type{TypeCI}},
	} {
		f.When(s.set && !slices.Contains(s.types, c.Type), path+"."+s.field, "has no meaning for the type %s", c.Type)
	}
	f.When(c.Pattern != "" && c.AllowInsecureLoopback, path+".allow_insecure_loopback", "has no meaning for a pattern, which is always https")
}

// checkTokens checks what is asked of every token, whatever the type, and fills
// in the defaults.
func (c *IssuerConfig) checkTokens(path string, f *setting.Faults) {
	usual := "sub"
	if c.Type == TypeEmail {
		usual = "email"
	}
	if c.ChallengeClaim = cmp.Or(c.ChallengeClaim, usual); c.ChallengeClaim != "email" && c.ChallengeClaim != "sub" {
		f.Add(path+".challenge_claim", "must be email or sub")
	}
	known := oidc.Algorithms()
	algorithms := make([]string, len(c.Algorithms))
	for i, a := range c.Algorithms {
		if algorithms[i] = oidc.CanonicalAlgorithm(a); !slices.Contains(known, algorithms[i]) {
			f.Add(setting.Index(path+".algorithms", i), "%q is not accepted; the algorithms are %s", a, strings.Join(known, ", "))
		}
	}
	if c.Algorithms = algorithms; len(algorithms) == 0 {
		c.Algorithms = known
	}
	f.When(c.MaxTokenLifetime < 0, path+".max_token_lifetime", "must not be negative")
	f.When(c.Leeway < 0 || c.Leeway > mostLeeway, path+".leeway", "must be from 0 to %s", mostLeeway)
	f.When(c.MaxTokenAge < 0, path+".max_token_age", "must not be negative")
	checkParties(path+".authorized_parties", "azp", c.AuthorizedParties, false, f)
	// The caller keeps its lists; these are ours.
	c.Aliases, c.Audiences, c.AuthorizedParties = slices.Clone(c.Aliases), slices.Clone(c.Audiences), slices.Clone(c.AuthorizedParties)
	c.MaxTokenLifetime = cmp.Or(c.MaxTokenLifetime, defaultLifetime)
	c.Leeway = cmp.Or(c.Leeway, defaultLeeway)
}

// checkOrigin accepts a scheme and host, and nothing else.
func checkOrigin(s string) error {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return errors.New("required for the type uri, such as https://example.com")
	case err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != s || !domainName(u.Hostname()) || s != strings.ToLower(s):
		return errors.New("must be a scheme and host in lower case and nothing else, such as https://example.com")
	}
	return nil
}
