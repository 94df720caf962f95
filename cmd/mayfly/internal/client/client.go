// Package client is the client side of Mayfly: it makes an ephemeral key, finds
// an identity token, proves possession of the key, asks a CA that speaks the
// Fulcio API for a certificate over REST or gRPC, and verifies the answer
// against a trusted root that the caller chose.
//
// No error, log line or printed value of this package holds a token or a key.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/wait"
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
	Answer
}

// Answer is what another side said of its refusal; empty where it gave none.
type Answer struct {
	Code      string `json:"code,omitempty"`       // such as HTTP 403, or gRPC PermissionDenied
	Reason    string `json:"reason,omitempty"`     // of those that docs/api.md lists
	RequestID string `json:"request_id,omitempty"` // by which its operator finds the request
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

// Retry bounds how often a request is sent. Only what may pass is sent again:
// HTTP 5xx and 429, and their gRPC equals. The zero Retry is usable.
type Retry struct {
	// Attempts is the number of times a request is sent at most; 0 means 4.
	Attempts int
	// Wait waits for d or until ctx ends; nil waits by the clock.
	Wait func(ctx context.Context, d time.Duration) error
	// Say is told why and how long it waits; nil is silent.
	Say func(line string)
	// Now reads the clock for a Retry-After that is a date; nil is time.Now.
	Now func() time.Time
}

const (
	firstWait    = 500 * time.Millisecond // doubled each time, with jitter
	longestWait  = 30 * time.Second       // a Retry-After beyond it ends the attempts
	usualRetries = 4
)

// again decides after attempt n (from 1) has failed with cause, whose
// Retry-After is after (0 when it has none). It waits and reports whether to
// send once more; false leaves the failure to the caller.
func (r Retry) again(ctx context.Context, n int, after time.Duration, cause string) bool {
	attempts := cmp.Or(r.Attempts, usualRetries)
	if n >= attempts || after > longestWait {
		return false
	}
	d := after
	if d <= 0 {
		d = firstWait << (n - 1)
		d = d/2 + rand.N(d/2+1) // #nosec G404 -- jitter
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	if r.Say != nil {
		r.Say(fmt.Sprintf("%s; trying again in %s (%d of %d)", cause, d.Round(10*time.Millisecond), n+1, attempts))
	}
	if r.Wait != nil {
		return r.Wait(ctx, d) == nil
	}
	return wait.For(ctx, d) == nil
}

func (r Retry) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

// message is what is sent: by POST where it has a body, else by GET.
type message struct {
	what    string // names the other side in errors
	url     string
	header  http.Header
	body    []byte
	created bool // 201 is a good answer too, beside 200
}

// ask sends a message until an answer is final, and gives the body of a good one. Network
// failures are Unavailable and not sent again: whether the first arrived isn't known.
func ask(ctx context.Context, hc *http.Client, retry Retry, m message) ([]byte, error) {
	method := http.MethodGet
	if m.body != nil {
		method = http.MethodPost
	}
	for n := 1; ; n++ {
		req, err := http.NewRequestWithContext(ctx, method, m.url, bytes.NewReader(m.body))
		if err != nil {
			return nil, problem(Failed, "", "making the request to %s", m.what).because(err)
		}
		req.Header = m.header
		resp, err := hc.Do(req)
		if err != nil {
			return nil, unreachable(ctx, m.what, err)
		}
		body, err := io.ReadAll(resp.Body) // bounded: see capped
		_ = resp.Body.Close()
		cause := fmt.Sprintf("%s answered %d", m.what, resp.StatusCode)
		switch {
		case err != nil:
			return nil, unreachable(ctx, m.what, fmt.Errorf("reading the answer: %w", err))
		case resp.StatusCode == http.StatusOK, m.created && resp.StatusCode == http.StatusCreated:
			return body, nil
		case !passing(resp.StatusCode) || !retry.again(ctx, n, wait.Asked(resp.Header, retry.now()), cause):
			return nil, fault(m.what, resp, body)
		}
	}
}

// passing says that the same request may succeed later.
func passing(status int) bool { return status >= 500 || status == http.StatusTooManyRequests }

// unreachable classifies a failure to get any answer.
func unreachable(ctx context.Context, what string, err error) error {
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return problem(Failed, "check the URL", "%s answered with more than %d bytes", what, maxAnswer)
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return problem(Unavailable, "try again, or give a longer --timeout", "%s did not answer in time", what)
	default:
		return problem(Unavailable, "check the URL and that the service runs", "%s is unreachable", what).because(err)
	}
}

// rpcStatus is the JSON of google.rpc.Status with the details this client reads.
type rpcStatus struct {
	Message string `json:"message"`
	Details []struct {
		Reason    string `json:"reason"`    // google.rpc.ErrorInfo
		RequestID string `json:"requestId"` // google.rpc.RequestInfo
	} `json:"details"`
}

// fault makes the error for an answer that isn't a success: the other side's
// message, its reason and the request id that its operator can look up.
func fault(what string, resp *http.Response, body []byte) error {
	if resp.StatusCode/100 == 3 {
		return problem(Refused, "give the final URL; a token is never sent on to another place",
			"%s answered with a redirect to %q", what, resp.Header.Get("Location"))
	}
	id := resp.Header.Get("X-Request-Id")
	var s rpcStatus
	if json.Unmarshal(body, &s) != nil {
		s = rpcStatus{}
	}
	reason := ""
	for _, d := range s.Details {
		reason = cmp.Or(d.Reason, reason)
		id = cmp.Or(id, d.RequestID)
	}
	return refusal(what, fmt.Sprintf("HTTP %d", resp.StatusCode), cmp.Or(s.Message, oneLine(string(body))), reason, id, passing(resp.StatusCode))
}

// refusal is the one form in which another side's error is shown.
func refusal(what, code, message, reason, id string, passing bool) error {
	e := &Error{Kind: Refused, Answer: Answer{code, oneLine(reason), oneLine(id)}}
	outcome := "refused the request"
	if passing {
		e.Kind, outcome, e.Fix = Unavailable, "could not answer", "try again later"
	}
	if reason != "" {
		code += ", " + e.Reason
	}
	e.Text = fmt.Sprintf("%s %s (%s)", what, outcome, code)
	if message != "" {
		e.Text += ": " + message
	}
	if id != "" {
		e.Text += "\nrequest id " + e.RequestID
	}
	return e
}

// oneLine is what another side wrote, bounded.
func oneLine(s string) string { return oneline.Clean(s, maxTrouble) }

// FetchTrust gets a trusted root from a URL and parses it. The document is only
// as trustworthy as the host that serves it; its SHA-256 in hexadecimal is for
// the person to compare.
func FetchTrust(ctx context.Context, hc *http.Client, retry Retry, url string) (trust *Trust, digest string, err error) {
	body, err := Fetch(ctx, hc, retry, "the trusted root's host", url)
	if err != nil {
		return nil, "", err
	}
	if trust, err = ParseTrust(body); err != nil {
		return nil, "", err
	}
	return trust, fmt.Sprintf("%x", sha256.Sum256(body)), nil
}

// Accepted is an issuer that a CA accepts.
type Accepted struct {
	URL      string `json:"issuerUrl"`
	Audience string `json:"audience"` // of its tokens: the first of several
}

// Issuers asks the CA which issuers it accepts by their exact URLs, in its order.
func Issuers(ctx context.Context, hc *http.Client, retry Retry, ca string) ([]Accepted, error) {
	body, err := Fetch(ctx, hc, retry, "the CA", strings.TrimRight(ca, "/")+"/api/v2/configuration")
	if err != nil {
		return nil, err
	}
	var configuration struct {
		Issuers []Accepted `json:"issuers"`
	}
	if err := json.Unmarshal(body, &configuration); err != nil {
		return nil, unreadable("its configuration is not JSON")
	}
	return slices.DeleteFunc(configuration.Issuers, func(i Accepted) bool { return i.URL == "" }), nil
}

// Fetch gets what is at url; what names the other side in errors.
func Fetch(ctx context.Context, hc *http.Client, retry Retry, what, url string) ([]byte, error) {
	return ask(ctx, hc, retry, message{what: what, url: url})
}

// API asks the CA at base for something of its own API, below /api/v1/mayfly/: with a
// body by POST, else by GET. The token may be nil where the CA asks for none. Errors are
// those of [CA].
func API(ctx context.Context, hc *http.Client, retry Retry, base, path string, query url.Values, body []byte, token *Token) ([]byte, error) {
	header := http.Header{"Content-Type": {"application/json"}}
	if token != nil {
		header.Set("Authorization", "Bearer "+token.raw)
	}
	return ask(ctx, hc, retry, message{what: "the CA", url: base + "/api/v1/mayfly/" + path + "?" + query.Encode(), header: header, body: body})
}
