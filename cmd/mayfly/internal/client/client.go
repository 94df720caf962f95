// Package client is the client side of Mayfly: it makes an ephemeral key, finds
// an identity token, proves possession of the key, asks a CA that speaks the
// Fulcio API for a certificate over REST or gRPC, and verifies the answer
// against a trusted root that the caller chose.
//
// No error, log line or printed value of this package holds a token or a key.
package client

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// Kind says whose failure it is, which decides the exit code of the command.
type Kind uint8

// The kinds of failure of a client.
const (
	Failed      Kind = iota // here: a file, a malformed token, an answer that can't be read
	Misused                 // the caller's settings can't work together
	Refused                 // the CA or the issuer refused; the same request will be refused again
	Unavailable             // unreachable, overloaded or broken; the same request may succeed later
	Unverified              // an answer came and did not pass verification
)

// Error is a failure with what a person can do about it.
type Error struct {
	Kind  Kind
	Text  string // what is wrong
	Fix   string // the next step, or ""
	Cause error  // nil where Text says it all
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Text
	}
	return e.Text + ": " + e.Cause.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// problem makes an Error without a cause.
func problem(kind Kind, fix, format string, args ...any) *Error {
	return &Error{Kind: kind, Fix: fix, Text: fmt.Sprintf(format, args...)}
}

// because returns a copy of e with its cause.
func (e *Error) because(cause error) *Error {
	c := *e
	c.Cause = cause
	return &c
}

// Limits of what this client reads, in bytes.
const (
	maxAnswer  = 1 << 20 // an answer of the CA or a trusted root: what other clients accept
	maxToken   = 64 << 10
	maxTrouble = 300 // the part of an unreadable error page that is shown
)

// NewHTTPClient makes the client for the CA, the issuer and the documents: it
// follows no redirect, since a request may carry a token; it honours
// HTTPS_PROXY and SSL_CERT_FILE. Deadlines come from the context of each call.
// The caller closes its idle connections.
func NewHTTPClient() *http.Client {
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  60 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
	}
	return &http.Client{
		Transport:     capped{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// capped ends every answer with an error after maxAnswer bytes, so that the
// OpenID libraries, which read to the end, are bounded too.
type capped struct{ *http.Transport }

func (c capped) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(req)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// CheckURL parses the URL of a service that is told a token or a secret. It is
// https, or http on a loopback address, or any http where plaintext is allowed;
// without userinfo, query and fragment. what names the service in the error.
func CheckURL(what, raw string, plaintext bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, problem(Misused, "write it as https://host or http://127.0.0.1:port", "the URL of %s is not an http or https URL", what)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, problem(Misused, "give the plain base URL", "the URL of %s has userinfo, a query or a fragment", what)
	}
	if u.Scheme == "http" && !loopback.Host(u.Hostname()) && !plaintext {
		return nil, problem(Misused, "use https, or add --allow-http where the network is trusted",
			"%s at %s would be spoken to without encryption", what, u.Host)
	}
	return u, nil
}
