package oidc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// Limits on what an issuer may answer.
const (
	fetchTimeout   = 5 * time.Second // discovery and keys together
	maxBody        = 1 << 20         // bytes, after decompression
	maxMemberBody  = 128 << 10       // of an issuer of a pattern, of which there may be many
	maxHeaderBytes = 64 << 10
	maxRedirects   = 3
)

// fetcher makes every request to the issuers of one configuration: for their
// discovery documents and their keys.
type fetcher struct {
	client *http.Client
	// insecure lets keys be fetched with http from a loopback address.
	insecure bool
	hosts    []string // where keys may be, beside the issuer's own host
}

// newFetcher makes the client. A nil transport means our own, hardened one.
func newFetcher(c *Config, transport http.RoundTripper) (*fetcher, error) {
	if transport == nil {
		policy, err := c.dialPolicy()
		if err != nil {
			return nil, err
		}
		if transport, err = newTransport(policy, c.CAFile); err != nil {
			return nil, err
		}
	}
	guarded := guardedTransport{next: transport, most: maxBody, tokenFile: c.BearerTokenFile}
	if c.Pattern != "" {
		guarded.most = maxMemberBody
	}
	if c.BearerTokenFile != "" {
		own, err := url.Parse(c.URL)
		if err != nil {
			return nil, fmt.Errorf("the issuer's url: %w", err)
		}
		guarded.scheme, guarded.host = own.Scheme, own.Host
	}
	return &fetcher{
		insecure: c.AllowInsecureLoopback,
		hosts:    slices.Concat(c.JWKSHosts, wellKnownKeyHosts[c.URL]),
		client:   &http.Client{Transport: guarded, CheckRedirect: sameOrigin, Timeout: fetchTimeout},
	}, nil
}

// wellKnownKeyHosts are public issuers that publish their keys on another host
// of their own.
var wellKnownKeyHosts = map[string][]string{
	"https://accounts.google.com": {"www.googleapis.com"},
}

// sameOrigin follows a redirect only where it stays on scheme, host and port.
func sameOrigin(req *http.Request, via []*http.Request) error {
	switch first := via[0].URL; {
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	case req.URL.Scheme != first.Scheme || req.URL.Host != first.Host || req.URL.User != nil:
		return errors.New("a redirect to another origin is not followed")
	}
	return nil
}

// discover asks an issuer where its keys are (OpenID Connect Discovery §4).
// The document must name the same issuer.
func (f *fetcher) discover(ctx context.Context, issuer string) (jwksURL string, err error) {
	p, err := goidc.NewProvider(goidc.ClientContext(ctx, f.client), issuer)
	if err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	var document struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := p.Claims(&document); err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	if err := f.checkJWKSURL(document.JWKSURI, issuer); err != nil {
		return "", fmt.Errorf("discovery: jwks_uri %w", err)
	}
	return document.JWKSURI, nil
}

// checkJWKSURL accepts https, on the issuer's own host or one that is listed.
func (f *fetcher) checkJWKSURL(s, issuer string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("is not a URL with a host and without user")
	}
	if !secureURL(u, f.insecure) {
		return errors.New("is not https")
	}
	own, err := url.Parse(issuer)
	if err != nil {
		return fmt.Errorf("the issuer is no URL: %w", err)
	}
	if host := hostPort(u); host != hostPort(own) && !slices.ContainsFunc(f.hosts, func(h string) bool {
		return host == hostPort(&url.URL{Scheme: "https", Host: h})
	}) {
		return fmt.Errorf("is on another host, %s; list it in jwks_hosts if the issuer's keys belong there", claim.Quote(u.Host))
	}
	return nil
}

// secureURL reports whether a URL is https or, where insecure lets it, http on a
// loopback host.
func secureURL(u *url.URL, insecure bool) bool {
	return u.Scheme == "https" || u.Scheme == "http" && insecure && loopback.Host(u.Hostname())
}

// hostPort is a URL's host in lower case, with its port written out.
func hostPort(u *url.URL) string {
	port := cmp.Or(u.Port(), map[string]string{"http": "80"}[u.Scheme], "443")
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// jwks fetches a JWKS.
func (f *fetcher) jwks(ctx context.Context, from string) (jwks, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	res, err := f.client.Do(req)
	if err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	if res.StatusCode != http.StatusOK {
		return jwks{}, fmt.Errorf("keys: the issuer answered %d", res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	return parseJWKS(body, freshFor(res.Header))
}

// truncated keeps an answer that a dependency put into its error from filling
// the log.
func truncated(err error) error {
	if err == nil {
		return nil
	}
	return oneline.Error(err, 300)
}

// How long keys serve before they are fetched again. An issuer says it with
// Cache-Control, within bounds: keys that it removes stop working within
// maxFresh while it can be reached, however long it meant them to be kept.
const (
	minFresh     = time.Minute
	defaultFresh = 10 * time.Minute
	maxFresh     = 30 * time.Minute
)

// freshFor reads how long an answer may be kept (RFC 9111 §4.2.1 and §5.2.2)
// by one that isn't a shared cache, less the age that it came with (§5.1).
func freshFor(h http.Header) time.Duration {
	fresh := defaultFresh
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return minFresh
		case "max-age":
			fresh = seconds(strings.Trim(value, `"`), minFresh)
		}
	}
	fresh -= seconds(strings.TrimSpace(h.Get("Age")), 0)
	return min(max(fresh, minFresh), maxFresh)
}

// seconds is a delta-seconds (RFC 9111 §1.2.2), or what to take for something else.
func seconds(s string, otherwise time.Duration) time.Duration {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil && n == 0, s == "", s[0] == '+':
		return otherwise
	case n > 1<<31: // "the cache MUST consider the value to be 2147483648"
		n = 1 << 31
	}
	return time.Duration(n) * time.Second
}
