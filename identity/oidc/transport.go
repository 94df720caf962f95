package oidc

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// transport is the way to the servers of one configuration. Without a proxy it
// connects to what the dial policy allows. A proxy is the operator's own, at
// any address, and resolves names for itself: which of them it connects to is
// its policy, and ours judges addresses that a URL spells out.
type transport struct {
	policy dialPolicy
	dialer *net.Dialer
	proxy  func(*url.URL) (*url.URL, error)
	caFile setting.Path

	mu      sync.Mutex
	pem     []byte // what the certificate authorities were read from
	direct  *http.Transport
	proxied *http.Transport
}

// newTransport reads the file of certificate authorities, and the proxy from
// the environment: HTTPS_PROXY and NO_PROXY, or in lower case.
func newTransport(policy dialPolicy, caFile setting.Path) (*transport, error) {
	t := &transport{policy: policy, proxy: httpproxy.FromEnvironment().ProxyFunc(), caFile: caFile}
	t.dialer = &net.Dialer{Timeout: fetchTimeout, ControlContext: policy.control}
	_, _, err := t.transports()
	return t, err
}

// NewTransport is the way to servers that are nobody's issuers, with the same rules:
// addresses of the public Internet, and of the networks that are allowed beside; of
// authorities those of a file, where one is named. Errors are for f, under path.
func NewTransport(path string, networks []string, caFile setting.Path, f *setting.Faults) http.RoundTripper {
	c := Config{AllowNetworks: networks}
	policy, err := c.dialPolicy()
	f.When(err != nil, setting.Join(path, "allow_networks"), "%v", err)
	t, err := newTransport(policy, caFile)
	f.When(err != nil, setting.Join(path, "ca_file"), "%v", err)
	return t
}

// RoundTrip makes one request.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	direct, proxied, err := t.transports()
	if err != nil {
		return nil, err
	}
	proxy, err := t.proxy(req.URL)
	if err != nil {
		return nil, fmt.Errorf("the proxy that the environment names: %w", err)
	}
	if proxy == nil {
		return direct.RoundTrip(req)
	}
	if a, err := netip.ParseAddr(req.URL.Hostname()); err == nil {
		if err := t.policy.check(a); err != nil {
			return nil, fmt.Errorf("asking the proxy for %s: %w", a, err)
		}
	}
	return proxied.RoundTrip(req)
}

// CloseIdleConnections passes on what http.Client asks for.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdle()
}

func (t *transport) closeIdle() {
	if t.direct != nil {
		t.direct.CloseIdleConnections()
		t.proxied.CloseIdleConnections()
	}
}

// transports gives both ways, made anew when the file of certificate
// authorities has changed. A file that can't be read is an error: to trust what
// it no longer holds would be the worse surprise.
func (t *transport) transports() (direct, proxied *http.Transport, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var pem []byte
	var roots *x509.CertPool
	if t.caFile != "" {
		if pem, err = durable.ReadPlain(string(t.caFile), maxBody); err != nil {
			return nil, nil, fmt.Errorf("reading the certificate authorities: %w", err)
		}
	}
	if t.direct != nil && bytes.Equal(pem, t.pem) {
		return t.direct, t.proxied, nil
	}
	if t.caFile != "" {
		if roots, err = pemfile.Pool(pem); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.caFile, err)
		}
	}
	t.closeIdle()
	t.pem = pem
	t.direct = newHTTPTransport(roots)
	t.direct.DialContext = t.dialer.DialContext
	t.proxied = newHTTPTransport(roots)
	t.proxied.DialContext = (&net.Dialer{Timeout: fetchTimeout}).DialContext
	t.proxied.Proxy = func(req *http.Request) (*url.URL, error) { return t.proxy(req.URL) }
	return t.direct, t.proxied, nil
}

func newHTTPTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    fetchTimeout,
		ResponseHeaderTimeout:  fetchTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        30 * time.Second,
	}
}

// guardedTransport sends the bearer token of tokenFile with the requests to the
// issuer's own origin and with no other, and bounds every answer.
type guardedTransport struct {
	next         http.RoundTripper
	most         int64        // bytes of an answer
	tokenFile    setting.Path // empty for none
	scheme, host string       // the issuer's own origin
}

const maxBearer = 16 << 10 // bytes

var errBearer = errors.New("the bearer token file is empty or holds something other than a token")

// RoundTrip makes one request. The file of the token is read each time, so one
// that was renewed is used at once.
func (g guardedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if g.tokenFile != "" && req.URL.Scheme == g.scheme && req.URL.Host == g.host {
		token, err := durable.ReadPlain(string(g.tokenFile), maxBearer)
		if err != nil {
			return nil, fmt.Errorf("reading the bearer token: %w", err)
		}
		token = bytes.TrimSpace(token)
		if len(token) == 0 || bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, errBearer
		}
		req = req.Clone(req.Context()) // a RoundTripper doesn't change what it is given
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	res, err := g.next.RoundTrip(req)
	if err == nil {
		body := bufio.NewReader(bounded.Body(res.Body, g.most, fmt.Errorf("the answer is longer than %d bytes", g.most)))
		if start, _ := body.Peek(len(byteOrderMark)); bytes.Equal(start, byteOrderMark) {
			_, _ = body.Discard(len(byteOrderMark)) // which was just seen
		}
		res.Body = struct {
			io.Reader
			io.Closer
		}{body, res.Body}
	}
	return res, err
}

// CloseIdleConnections passes on what http.Client asks for.
func (g guardedTransport) CloseIdleConnections() {
	if t, ok := g.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// byteOrderMark is what some servers and editors put before JSON, which has none
// (RFC 8259 §8.1 lets a parser ignore it).
var byteOrderMark = []byte("\ufeff")
