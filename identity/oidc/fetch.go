package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// Limits on what an issuer may answer.
const (
	fetchTimeout   = 5 * time.Second // discovery and keys together
	maxBody        = 1 << 20         // bytes, after decompression
	maxHeaderBytes = 64 << 10
	maxRedirects   = 3
	maxKeys        = 100 // in one key set
)

// fetcher makes every request that identity makes: an issuer's discovery
// document and its keys.
type fetcher struct {
	client *http.Client
	// loopback lets keys be fetched with http from a loopback address.
	loopback bool
	hosts    []string // where keys may be, beside the issuer's own host
}

// newFetcher makes the client of one issuer entry. A nil transport means our
// own, hardened one.
func newFetcher(c *IssuerConfig, transport http.RoundTripper) (*fetcher, error) {
	if transport == nil {
		policy, err := c.addressPolicy()
		if err != nil {
			return nil, err
		}
		if transport, err = newTransport(policy, c.CAFile); err != nil {
			return nil, err
		}
	}
	if c.BearerTokenFile != "" {
		own, err := url.Parse(c.URL)
		if err != nil {
			return nil, fmt.Errorf("the issuer's url: %w", err)
		}
		transport = &bearer{next: transport, scheme: own.Scheme, host: own.Host, file: c.BearerTokenFile}
	}
	return &fetcher{
		loopback: c.AllowInsecureLoopback,
		hosts:    slices.Concat(c.JWKSHosts, wellKnownKeyHosts[c.URL]),
		client: &http.Client{
			Transport:     capped{transport},
			CheckRedirect: sameOrigin,
			Timeout:       fetchTimeout,
		},
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

// capped ends every body with an error once it is longer than maxBody.
type capped struct{ next http.RoundTripper }

func (c capped) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := c.next.RoundTrip(req)
	if err == nil {
		res.Body = &cappedBody{ReadCloser: res.Body, left: maxBody}
	}
	return res, err
}

// CloseIdleConnections passes on what http.Client asks for.
func (c capped) CloseIdleConnections() { closeIdleConnections(c.next) }

type cappedBody struct {
	io.ReadCloser
	left int64
}

var errBody = fmt.Errorf("the answer is longer than %d bytes", maxBody)

func (b *cappedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBody
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more than allowed, to tell the end from too much
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errBody
	}
	return n, err
}

// discover asks an issuer where its keys are (OpenID Connect Discovery §4).
// The document must name the same issuer.
func (f *fetcher) discover(ctx context.Context, issuer string) (jwksURL string, err error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, f.client), issuer)
	if err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	var document struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := p.Claims(&document); err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	if err := f.checkKeysURL(document.JWKSURI, issuer); err != nil {
		return "", fmt.Errorf("discovery: jwks_uri %w", err)
	}
	return document.JWKSURI, nil
}

// checkKeysURL accepts https, on the issuer's own host or one that is listed.
func (f *fetcher) checkKeysURL(s, issuer string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("is not a URL with a host and without user")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !f.loopback || !loopback.Host(u.Hostname())) {
		return errors.New("is not https")
	}
	own, err := url.Parse(issuer)
	if err != nil {
		return fmt.Errorf("the issuer is no URL: %w", err)
	}
	if host := hostPort(u); host != hostPort(own) && !slices.ContainsFunc(f.hosts, func(h string) bool {
		return host == hostPort(&url.URL{Scheme: "https", Host: h})
	}) {
		return fmt.Errorf("is on another host, %s; list it in jwks_hosts if the issuer's keys belong there", quote(u.Host))
	}
	return nil
}

// hostPort is a URL's host in lower case, with its port written out.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// keys fetches a JWK set (RFC 7517 §5) and parses it, once for all tokens. A
// key that we can't use is passed over: issuers publish others beside them.
func (f *fetcher) keys(ctx context.Context, jwksURL string) (published, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, jwksURL, nil)
	if err != nil {
		return published{}, fmt.Errorf("keys: %w", err)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	res, err := f.client.Do(req)
	if err != nil {
		return published{}, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	if res.StatusCode != http.StatusOK {
		return published{}, fmt.Errorf("keys: the issuer answered %d", res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return published{}, fmt.Errorf("keys: %w", err)
	}
	keys, err := parseKeys(body)
	return published{keys, freshness(res.Header)}, err
}

func parseKeys(body []byte) ([]jose.JSONWebKey, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return nil, fmt.Errorf("keys: the set holds %d keys; at most %d are read", len(document.Keys), maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range document.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err == nil && len(algorithmsOf(&k)) > 0 {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("keys: none of the %d keys in the set can verify a signature", len(document.Keys))
	}
	return keys, nil
}

// brief keeps an answer that a dependency put into its error from filling the log.
func brief(err error) error { return oneline.Error(err, 300) }
