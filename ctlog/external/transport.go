package external

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// newTransport is one log's own: a connection that hangs is no other log's trouble.
func newTransport(c Config) (*http.Transport, error) {
	roots, err := pemfile.PoolFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("the CA file: %w", err)
	}
	proxy, err := proxyOf(c)
	if err != nil {
		return nil, err
	}
	dial, err := dialer(c)
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  answerTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		ForceAttemptHTTP2:      true,
		// A connection that a firewall forgot takes requests and answers none, until TCP
		// gives up after a quarter of an hour.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}, nil
}

// proxyOf is the way that the option proxy says. A proxy looks up names by itself,
// so none is asked where the address is given.
func proxyOf(c Config) (func(*http.Request) (*url.URL, error), error) {
	switch {
	case c.Proxy == ctlog.ProxyNone, c.Address != "":
		return nil, nil //nolint:nilnil // http.Transport's way to say that there is no proxy
	case c.Proxy == "":
		return http.ProxyFromEnvironment, nil
	}
	u, err := url.Parse(c.Proxy)
	if err != nil {
		return nil, fmt.Errorf("its proxy: %w", err)
	}
	return http.ProxyURL(u), nil
}

// dialer connects to the option address in place of the URL's own host, so that
// Host and TLS name the log as it names itself, wherever it is reached. Where the
// log is read at another host, that one is found by its own name.
func dialer(c Config) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	d := &net.Dialer{Timeout: dialTimeout}
	if c.Address == "" {
		return d.DialContext, nil
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("its URL: %w", err)
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	own := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.EqualFold(address, own) {
			address = c.Address
		}
		return d.DialContext(ctx, network, address)
	}, nil
}

// bearer adds the token to what is asked for below a URL.
type bearer struct {
	next         http.RoundTripper
	below, token string
}

// RoundTrip makes one request.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), b.below) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", b.token)
	}
	return b.next.RoundTrip(r)
}
