package kms

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// The bounds of every network backend.
const (
	dialTimeout    = 3 * time.Second  // DNS and connection together
	tlsTimeout     = 3 * time.Second  // the handshake
	attemptTimeout = 5 * time.Second  // one request and its answer, from DNS on
	openTimeout    = 15 * time.Second // the whole of Open
	// An HTTP/2 connection on which nothing came for pingAfter is asked for a sign
	// of life, and closed without one within pingTimeout: what a firewall has
	// forgotten would else hang every request until TCP gives up, minutes later.
	pingAfter   = 2 * time.Second
	pingTimeout = time.Second
)

// ErrOpenTimeout is the cause of a context whose time for an Open is over.
var ErrOpenTimeout = fmt.Errorf("the key couldn't be opened within %v", openTimeout)

// maxIdle is how many connections wait for the next signature: as many
// signatures at once need no new handshake.
const maxIdle = 128

// newHTTPClient makes the client of one key: connections of its own, bounded in
// time, and no redirects, which none of these services send.
func newHTTPClient(a Access) (*http.Client, error) {
	roots, err := rootsOf(a)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   tlsTimeout,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          maxIdle,
		MaxIdleConnsPerHost:   maxIdle,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return &http.Client{
		Transport:     t,
		Timeout:       attemptTimeout, // for requests that an SDK makes outside the caller's context
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}, nil
}

var errRedirect = errors.New("the service answered with a redirect, which isn't followed: set the endpoint to the service itself")

// rootsOf reads the CA file; nil without one, which is the system's roots.
func rootsOf(a Access) (*x509.CertPool, error) {
	if a.CAFile == "" {
		return nil, nil //nolint:nilnil // tls.Config's own way to say "the system's"
	}
	b, err := os.ReadFile(string(a.CAFile))
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	pool, err := pemfile.Pool(b)
	if err != nil {
		return nil, fmt.Errorf("ca_file %s: %w", a.CAFile, err)
	}
	return pool, nil
}
