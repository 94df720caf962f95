package identity

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	defaultKeysAge = 6 * time.Hour
	leastKeysAge   = time.Minute
	mostKeysAge    = 7 * 24 * time.Hour
)

// sources checks where an issuer's keys come from, and fills in the defaults.
func (c *IssuerConfig) sources(path string, f *setting.Faults) {
	for i, n := range c.AllowNetworks {
		if _, err := parseNetwork(n); err != nil {
			f.Add(setting.Index(path+".allow_networks", i), "%s", err)
		}
	}
	for i, h := range c.JWKSHosts {
		if u, err := url.Parse("https://" + h); err != nil || u.Host != h || h == "" || h != strings.ToLower(h) || strings.HasSuffix(h, ":") || !all(h, uriByte) {
			f.Add(setting.Index(path+".jwks_hosts", i), "must be a host in lower case, with a port unless it is 443, such as keys.example.com")
		}
	}
	if c.JWKSURL != "" {
		u, err := url.Parse(c.JWKSURL)
		if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !c.AllowInsecureLoopback || !loopback.Host(u.Hostname())) {
			f.Add(path+".jwks_url", "must be an https URL with a host, and without user and fragment")
		}
	}
	if c.MaxKeysAge != 0 && (c.MaxKeysAge < leastKeysAge || c.MaxKeysAge > mostKeysAge) {
		f.Add(path+".max_keys_age", "must be from %s to %s", leastKeysAge, mostKeysAge)
	}
	c.AllowNetworks, c.JWKSHosts = slices.Clone(c.AllowNetworks), slices.Clone(c.JWKSHosts)
	c.MaxKeysAge = cmp.Or(c.MaxKeysAge, defaultKeysAge)
	c.uselessSources(path, f)
}

// uselessSources refuses settings that nothing would read.
func (c *IssuerConfig) uselessSources(path string, f *setting.Faults) {
	for _, s := range []struct {
		field       string
		set, remote bool // remote settings are about requests
		pattern     bool // a pattern may have it
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
		case c.Pattern != "" && !s.pattern:
			f.Add(path+"."+s.field, "has no meaning for a pattern, whose issuers each have keys of their own; write the issuer as url")
		case c.JWKSFile != "" && s.remote:
			f.Add(path+"."+s.field, "has no meaning beside jwks_file: nothing is fetched")
		case c.JWKSURL != "" && s.field == "jwks_hosts":
			f.Add(path+".jwks_hosts", "has no meaning beside jwks_url: nothing is discovered")
		}
	}
}

// hygiene checks what is asked of every token of an issuer.
func (c *IssuerConfig) hygiene(path string, f *setting.Faults) {
	if c.MaxTokenAge < 0 {
		f.Add(path+".max_token_age", "must not be negative")
	}
	for i, party := range c.AuthorizedParties {
		if at := setting.Index(path+".authorized_parties", i); party == "" {
			f.Add(at, "must not be empty")
		} else if len(party) > maxAudience || claim.Fit("azp", party) != nil {
			f.Add(at, "must be at most %d bytes without control characters", maxAudience)
		}
	}
	c.AuthorizedParties = slices.Clone(c.AuthorizedParties)
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

// addressPolicy is what may be connected to. The configuration was checked.
func (c *IssuerConfig) addressPolicy() (addressPolicy, error) {
	var p addressPolicy
	for _, s := range c.AllowNetworks {
		n, err := parseNetwork(s)
		if err != nil {
			return p, err
		}
		p.allowed = append(p.allowed, n)
	}
	if c.AllowInsecureLoopback {
		p.allowed = append(p.allowed, loopbackNetworks...)
	}
	return p, nil
}
