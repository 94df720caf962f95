package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/setting"
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
// document and its keys. All limits on outbound traffic belong here; a policy
// on addresses goes into the dialer that newTransport makes.
type fetcher struct {
	client *http.Client
	// loopback lets keys be fetched with http from a loopback address.
	loopback bool
}

// newFetcher makes the client of one issuer. A nil transport means our own,
// which trusts the certificates in caFile, or the system's.
func newFetcher(transport http.RoundTripper, caFile setting.Path, loopback bool) (*fetcher, error) {
	if transport == nil {
		t, err := newTransport(caFile)
		if err != nil {
			return nil, err
		}
		transport = t
	}
	return &fetcher{
		loopback: loopback,
		client: &http.Client{
			Transport:     capped{transport},
			CheckRedirect: sameOrigin,
			Timeout:       fetchTimeout,
		},
	}, nil
}

func newTransport(caFile setting.Path) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: fetchTimeout}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    fetchTimeout,
		ResponseHeaderTimeout:  fetchTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        30 * time.Second,
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(string(caFile))
	if err != nil {
		return nil, fmt.Errorf("reading the issuer's certificate authorities: %w", err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", caFile)
	}
	return t, nil
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
func (c capped) CloseIdleConnections() {
	if t, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

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
	if err := f.checkKeysURL(document.JWKSURI); err != nil {
		return "", fmt.Errorf("discovery: jwks_uri %w", err)
	}
	return document.JWKSURI, nil
}

func (f *fetcher) checkKeysURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("is not a URL with a host and without user")
	case u.Scheme == "https", u.Scheme == "http" && f.loopback && isLoopback(u.Hostname()):
		return nil
	default:
		return errors.New("is not https")
	}
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// keys fetches a JWK set (RFC 7517 §5) and parses it, once for all tokens. A
// key that we can't use is passed over: issuers publish others beside them.
func (f *fetcher) keys(ctx context.Context, jwksURL string) ([]jose.JSONWebKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, jwksURL, nil)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	res, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("keys: the issuer answered %d", res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return parseKeys(body)
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
func brief(err error) error { return &briefError{err} }

type briefError struct{ error }

func (e *briefError) Error() string {
	const most = 300
	s := strings.ToValidUTF8(e.error.Error(), "?")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

func (e *briefError) Unwrap() error { return e.error }
