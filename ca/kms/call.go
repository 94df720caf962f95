package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// callAttempts is how often one call is tried. Every call that is made here may
// be repeated: a signature that is made twice costs quota and nothing else.
const callAttempts = 3

// backoff is the wait before the second attempt; it doubles for the third, and
// each is stretched by up to half at random, so that replicas don't march in step.
const backoff = 100 * time.Millisecond

// The operations of a service: metric labels, and the step of an error that has
// come as far as the service itself.
const (
	operationIdentity = "identity" // whose credential it is
	operationKey      = "key"      // describe it, fetch its public key
	operationSign     = "sign"
	operationMake     = "make" // a key, or a name of it
)

// The steps before a service has the request.
const (
	stepDNS     = "DNS"
	stepConnect = "connect"
	stepTLS     = "TLS"
	stepToken   = "token" // the credential, from another host than the KMS
)

// Unreached reports whether there was no connection to the host at all.
func (e *CallError) Unreached() bool {
	return e.Step == stepDNS || e.Step == stepConnect || e.Step == stepTLS
}

// CallError is a call to a KMS that failed: where, at which step, after what.
// Its text holds no secret and is bounded.
type CallError struct {
	Host     string
	Step     string // DNS, connect, TLS, token, identity, key or sign
	Attempts int
	Elapsed  time.Duration
	Text     string // what is wrong, and what to do where that is known
	Err      error

	outcome   outcome
	temporary bool // the same call may work later
}

func (e *CallError) Error() string {
	attempts := "1 attempt"
	if e.Attempts != 1 {
		attempts = fmt.Sprintf("%d attempts", e.Attempts)
	}
	return fmt.Sprintf("%s: %s: %s (%s, %v)", e.Host, e.Step, e.Text, attempts, e.Elapsed.Round(time.Millisecond))
}

// Temporary reports whether the same call may work later.
func (e *CallError) Temporary() bool { return e.temporary }

// Unwrap gives the cause.
func (e *CallError) Unwrap() error { return e.Err }

// verdict is what an error of one attempt means.
type verdict struct {
	outcome outcome
	retry   bool   // at once, after a short wait
	text    string // for the operator; "" for the error's own
}

// service is the far end of one key.
type service struct {
	backend string // label of metrics
	host    string // host[:port] of the KMS; what fails elsewhere is about the token
	client  *http.Client
	// judge classifies the vendor's own errors; false for others.
	judge   func(error) (verdict, bool)
	logger  *slog.Logger
	now     func() time.Time
	metrics *metrics
}

// call does one operation: at most callAttempts attempts of at most
// attemptTimeout each, within ctx. Its error is a *CallError; when ctx ended it
// wraps ctx.Err() too.
func (s *service) call(ctx context.Context, operation string, do func(ctx context.Context) error) error {
	return s.tries(ctx, operation, callAttempts, do)
}

// once is call for what must not be done twice: the making of a key, of which an
// answer that was lost would leave another behind.
func (s *service) once(ctx context.Context, operation string, do func(ctx context.Context) error) error {
	return s.tries(ctx, operation, 1, do)
}

func (s *service) tries(ctx context.Context, operation string, attempts int, do func(ctx context.Context) error) error {
	began := s.now()
	var failed *CallError
	for attempt := 1; ; attempt++ {
		at, err := s.attempt(ctx, do)
		if err == nil {
			s.metrics.observe(s.backend, operation, outcomeOK, s.now().Sub(began))
			return nil
		}
		v := s.verdict(err, at)
		failed = &CallError{Attempts: attempt, Elapsed: s.now().Sub(began), Err: err, outcome: v.outcome, temporary: v.retry, Text: v.text}
		failed.Host, failed.Step = at.place(s.host, operation)
		if !v.retry || attempt == attempts || !pause(ctx, attempt) {
			break
		}
	}
	if ctx.Err() != nil {
		failed.ended(ctx)
	}
	s.metrics.observe(s.backend, operation, failed.outcome, s.now().Sub(began))
	return failed
}

// ended marks that ctx is over, which is why there was no further attempt.
func (e *CallError) ended(ctx context.Context) {
	e.outcome, e.temporary = outcomeCanceled, true
	why := "the caller went away"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.outcome, why = outcomeTimeout, "the time for it ran out"
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
			why = cause.Error()
		}
	}
	if errors.Is(e.Err, ctx.Err()) || errors.Is(e.Err, context.DeadlineExceeded) {
		e.Text = why
	} else {
		e.Text += "; " + why
	}
	e.Err = errors.Join(ctx.Err(), e.Err)
}

// pause waits before the next attempt, and is false when ctx ends first.
func pause(ctx context.Context, attempt int) bool {
	d := backoff << (attempt - 1)
	d += time.Duration(rand.Int64N(int64(d / 2))) //nolint:gosec // G404: jitter is no secret
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	return wait.For(ctx, d) == nil
}

// attempt does the operation once and reports how far it came.
func (s *service) attempt(ctx context.Context, do func(ctx context.Context) error) (*progress, error) {
	at := new(progress)
	if err := ctx.Err(); err != nil {
		return at, err
	}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(ctx, at.trace()), attemptTimeout)
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = errors.Join(ctx.Err(), err) // SDKs don't always say so
	}
	return at, err
}

// verdict classifies the error of one attempt.
func (s *service) verdict(err error, at *progress) verdict {
	v, ok := s.judge(err)
	if !ok {
		v = networkVerdict(err, at)
	}
	if v.text == "" {
		v.text = err.Error()
	}
	v.text = oneLine(v.text)
	return v
}

// networkVerdict is for errors that don't come from the service itself.
func networkVerdict(err error, at *progress) verdict {
	if hidden := at.failure(); hidden != nil {
		err = errors.Join(err, hidden) // some SDKs keep no more than a text of it
	}
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var network net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return verdict{outcomeUnavailable, false, fmt.Sprintf("no such host %q: check the name", dns.Name)}
	case errors.As(err, &unknown):
		return verdict{outcomeUnavailable, false, "its certificate is by an unknown authority: set ca_file if the service has its own"}
	case errors.As(err, &certificate):
		return verdict{outcomeUnavailable, false, certificate.Err.Error()}
	case errors.As(err, &record):
		return verdict{outcomeUnavailable, false, "answers, but not with TLS: check the endpoint's scheme and port"}
	case errors.Is(err, errRedirect):
		return verdict{outcomeUnavailable, false, errRedirect.Error()}
	case errors.Is(err, context.Canceled):
		return verdict{outcomeCanceled, false, ""}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return verdict{outcomeTimeout, true, "no answer in time"}
	case errors.As(err, &network):
		return verdict{outcomeUnavailable, true, networkText(err)}
	case at.reached():
		return verdict{outcomeUnavailable, true, ""}
	default:
		return verdict{outcomeOther, false, ""} // before any request: not the network's fault
	}
}

// networkText is the part of an error that says what happened: an SDK's wrapping
// and the URL are known from elsewhere.
func networkText(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// oneLine bounds a text that others wrote, for logs.
func oneLine(text string) string { return oneline.Of(text, 300) }

// progress is how far one attempt came. An SDK may have several requests in one
// attempt, of which the last counts.
type progress struct {
	mu       sync.Mutex
	hostPort string // of the request under way
	step     string // before the request; "" once there is a connection
	failed   error  // of that step
}

func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn:           func(hostPort string) { p.set(hostPort, stepConnect) },
		DNSStart:          func(httptrace.DNSStartInfo) { p.set("", stepDNS) },
		DNSDone:           func(info httptrace.DNSDoneInfo) { p.fail(info.Err) },
		ConnectStart:      func(string, string) { p.set("", stepConnect) },
		ConnectDone:       func(_, _ string, err error) { p.fail(err) },
		TLSHandshakeStart: func() { p.set("", stepTLS) },
		TLSHandshakeDone:  func(_ tls.ConnectionState, err error) { p.fail(err) },
		GotConn:           func(httptrace.GotConnInfo) { p.set("", "") },
	}
}

// fail keeps why the step that was begun last failed.
func (p *progress) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed = err
	}
}

// failure is why there is no connection; nil where there is one, or nobody said.
func (p *progress) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step == "" {
		return nil
	}
	return p.failed
}

func (p *progress) set(hostPort, step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if hostPort != "" {
		p.hostPort = hostPort
	} else if p.hostPort == "" {
		return // the trace of a request that was given up
	}
	p.step, p.failed = step, nil
}

// reached reports whether a request was begun.
func (p *progress) reached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hostPort != ""
}

// place names the host and the step of an attempt at an operation of kms.
func (p *progress) place(kms, operation string) (host, step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host = strings.TrimSuffix(strings.TrimSuffix(p.hostPort, ":443"), ":80")
	switch {
	case host == "":
		return kms, operation
	case p.step != "":
		return host, p.step
	case host != kms && operation != operationIdentity:
		return host, stepToken
	default:
		return host, operation
	}
}

// unusableError is a key that was found and can't be used as it stands.
type unusableError struct{ text string }

func (e *unusableError) Error() string { return e.text }

// tokenError is a credential that gives no token.
type tokenError struct{ cause error }

func (e *tokenError) Error() string { return "the credential gives no token: " + e.cause.Error() }

func (e *tokenError) Unwrap() error { return e.cause }
