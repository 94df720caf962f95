package oidc

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	defaultKeysAge = 6 * time.Hour
	leastKeysAge   = time.Minute
	mostKeysAge    = 7 * 24 * time.Hour
)

// Config is where the keys of an issuer, or of each issuer of a pattern, come
// from. The fields are those of identity.IssuerConfig, where they are explained.
// Two configurations that are equal fetch the same in the same way.
type Config struct {
	URL     string // the issuer; or else Pattern
	Pattern string

	CAFile                setting.Path
	AllowNetworks         []string
	JWKSHosts             []string
	JWKSURL               string
	JWKSFile              setting.Path
	BearerTokenFile       setting.Path
	MaxKeysAge            time.Duration
	AllowInsecureLoopback bool
}

// hostCharacters is what jwks_hosts may hold (RFC 3986 §3.2.2 and §3.2.3), in
// lower case.
const hostCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=[]:"

// Check adds every fault of c to f, and fills in the defaults. It does no I/O.
// path is where the issuer's settings are.
func (c *Config) Check(path string, f *setting.Faults) {
	for i, n := range c.AllowNetworks {
		if _, err := parseNetwork(n); err != nil {
			f.Add(setting.Index(path+".allow_networks", i), "%s", err)
		}
	}
	for i, h := range c.JWKSHosts {
		if u, err := url.Parse("https://" + h); err != nil || u.Host != h || h == "" || strings.HasSuffix(h, ":") || strings.Trim(h, hostCharacters) != "" {
			f.Add(setting.Index(path+".jwks_hosts", i), "must be a host in lower case, with a port unless it is 443, such as keys.example.com")
		}
	}
	if c.JWKSURL != "" {
		u, err := url.Parse(c.JWKSURL)
		if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || !secureURL(u, c.AllowInsecureLoopback) {
			f.Add(path+".jwks_url", "must be an https URL with a host, and without user and fragment")
		}
	}
	f.When(c.MaxKeysAge != 0 && (c.MaxKeysAge < leastKeysAge || c.MaxKeysAge > mostKeysAge), path+".max_keys_age", "must be from %s to %s", leastKeysAge, mostKeysAge)
	c.MaxKeysAge = cmp.Or(c.MaxKeysAge, defaultKeysAge)
	c.checkUnused(path, f)
}

// checkUnused refuses settings that nothing would read.
func (c *Config) checkUnused(path string, f *setting.Faults) {
	for _, s := range []struct {
		field     string
		set       bool
		requests  bool // it is about requests
		inPattern bool // a pattern may have it
	}{
		{"jwks_file", c.JWKSFile != "", false, false},
		{"jwks_url", c.JWKSURL != "", true, false},
		{"bearer_token_file", c.BearerTokenFile != "", true, false},
		{"jwks_hosts", len(c.JWKSHosts) > 0, true, true},
		{"allow_networks", len(c.AllowNetworks) > 0, true, true},
		{"ca_file", c.CAFile != "", true, true},
	} {
		switch {
		case !s.set:
		case c.Pattern != "" && !s.inPattern:
			f.Add(path+"."+s.field, "has no meaning for a pattern, whose issuers each have keys of their own; write the issuer as url")
		case c.JWKSFile != "" && s.requests:
			f.Add(path+"."+s.field, "has no meaning beside jwks_file: nothing is fetched")
		case s.field == "bearer_token_file" && !c.ownOrigin():
			f.Add(path+".bearer_token_file", "has no meaning here: it is sent to the issuer's own host, and the url isn't that of one")
		case c.JWKSURL != "" && s.field == "jwks_hosts":
			f.Add(path+".jwks_hosts", "has no meaning beside jwks_url: nothing is discovered")
		}
	}
}

// ownOrigin reports whether the issuer's URL names a server of its own.
func (c *Config) ownOrigin() bool {
	u, err := url.Parse(c.URL)
	return err == nil && u.Host != "" && secureURL(u, c.AllowInsecureLoopback)
}

// SendsBearer reports whether any request goes to the issuer's own origin, which
// the bearer token is for.
func (c *Config) SendsBearer() bool {
	own, err := url.Parse(c.URL)
	keys, keysErr := url.Parse(c.JWKSURL)
	return err == nil && keysErr == nil && (c.JWKSURL == "" || keys.Scheme == own.Scheme && keys.Host == own.Host)
}

// parseNetwork reads a CIDR whose address bits beyond its length are zero.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("must be a network, such as 10.20.0.0/16 or fd00:1::/32")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits beyond its length; did you mean %s?", p.Masked())
	case p.Bits() == 0:
		return netip.Prefix{}, errors.New("is every address there is; list the issuer's own network")
	}
	return p, nil
}

// dialPolicy is what may be connected to, beside the public Internet.
func (c *Config) dialPolicy() (p dialPolicy, err error) {
	for _, s := range c.AllowNetworks {
		n, err := parseNetwork(s)
		if err != nil {
			return p, err
		}
		p = append(p, n)
	}
	if c.AllowInsecureLoopback {
		p = append(p, loopbackNetworks...)
	}
	return p, nil
}
