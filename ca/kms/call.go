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

// callAttempts is how often one call is tried. Each call here may be repeated: a
// signature that is made twice costs quota and nothing else.
const callAttempts = 3

// backoff is the wait before the second attempt; it doubles for the third, and
// each is stretched by up to half at random, so that replicas don't march in step.
const backoff = 100 * time.Millisecond

// The operations of a service: metric labels, and the step of an error that has
// come as far as the service itself.
const (
	OperationToken    = "token"    // fetch one with the credential
	OperationIdentity = "identity" // whose credential it is
	OperationKey      = "key"      // describe it, fetch its public key
	OperationMake     = "make"     // a key, or a name of it

	operationSign   = "sign"
	operationSeal   = "seal"
	operationUnseal = "unseal"
)

// The steps before a service has the request.
const (
	stepDNS     = "DNS"
	stepConnect = "connect"
	stepTLS     = "TLS"
	stepToken   = OperationToken // the credential, from another host than the KMS
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

	outcome   Outcome
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

// Classified is what an error of one attempt means.
type Classified struct {
	Outcome Outcome
	Retry   bool   // after a short wait
	Text    string // for the operator; "" for the error's own
}

// Service is the far end of one key.
type Service struct {
	HTTP   *http.Client // of this key alone
	Logger *slog.Logger
	Now    func() time.Time

	backend  string // label of metrics
	host     string // host[:port] of the KMS; what fails elsewhere is about the token
	classify func(error) (c Classified, known bool)
	metrics  *metrics
}

// Call does one operation: at most callAttempts attempts of at most
// attemptTimeout each, within ctx. Its error is a *CallError; when ctx ended it
// wraps ctx.Err() too.
func (s *Service) Call(ctx context.Context, operation string, do func(ctx context.Context) error) error {
	return s.retry(ctx, operation, callAttempts, do)
}

// Once is Call for what must not be done twice: if the answer to the making of a
// key is lost, a second attempt would make a second key.
func (s *Service) Once(ctx context.Context, operation string, do func(ctx context.Context) error) error {
	return s.retry(ctx, operation, 1, do)
}

func (s *Service) retry(ctx context.Context, operation string, attempts int, do func(ctx context.Context) error) error {
	began := s.Now()
	var failed *CallError
	for attempt := 1; ; attempt++ {
		at, err := s.attempt(ctx, do)
		if err == nil {
			s.metrics.observe(s.backend, operation, outcomeOK, s.Now().Sub(began))
			return nil
		}
		c := s.classified(err, at)
		failed = &CallError{Attempts: attempt, Elapsed: s.Now().Sub(began), Err: err, outcome: c.Outcome, temporary: c.Retry, Text: c.Text}
		failed.Host, failed.Step = at.place(s.host, operation)
		if !c.Retry || attempt == attempts || !Pause(ctx, attempt) {
			break
		}
	}
	if ctx.Err() != nil {
		failed.ended(ctx)
	}
	s.metrics.observe(s.backend, operation, failed.outcome, s.Now().Sub(began))
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

// Pause waits before the next attempt, and is false when ctx ends first.
func Pause(ctx context.Context, attempt int) bool {
	d := backoff << (attempt - 1)
	d += time.Duration(rand.Int64N(int64(d / 2))) //nolint:gosec // G404: jitter is no secret
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	return wait.For(ctx, d) == nil
}

// attempt does the operation once and reports how far it came.
func (s *Service) attempt(ctx context.Context, do func(ctx context.Context) error) (*connectionTrace, error) {
	at := new(connectionTrace)
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

// classified says what the error of one attempt means.
func (s *Service) classified(err error, at *connectionTrace) Classified {
	c, known := s.classify(err)
	if !known {
		c = classifyNetwork(err, at)
	}
	if c.Text == "" {
		c.Text = err.Error()
	}
	c.Text = OneLine(c.Text)
	return c
}

// classifyNetwork is for errors that don't come from the service itself.
func classifyNetwork(err error, at *connectionTrace) Classified {
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
		return Classified{OutcomeUnavailable, false, fmt.Sprintf("no such host %q: check the name", dns.Name)}
	case errors.As(err, &unknown):
		return Classified{OutcomeUnavailable, false, "its certificate is by an unknown authority: set ca_file if the service has its own"}
	case errors.As(err, &certificate):
		return Classified{OutcomeUnavailable, false, certificate.Err.Error()}
	case errors.As(err, &record):
		return Classified{OutcomeUnavailable, false, "answers, but not with TLS: check the endpoint's scheme and port"}
	case errors.Is(err, errRedirect):
		return Classified{OutcomeUnavailable, false, errRedirect.Error()}
	case errors.Is(err, context.Canceled):
		return Classified{outcomeCanceled, false, ""}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return Classified{outcomeTimeout, true, "no answer in time"}
	case errors.As(err, &network):
		return Classified{OutcomeUnavailable, true, networkText(err)}
	case at.reached():
		return Classified{OutcomeUnavailable, true, ""}
	default:
		return Classified{OutcomeOther, false, ""} // before any request: not the network's fault
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

// OneLine bounds a text that others wrote, for logs.
func OneLine(text string) string { return oneline.Clean(text, 300) }

// connectionTrace is how far one attempt came. An SDK may make several requests
// in one attempt; the last one counts.
type connectionTrace struct {
	mu       sync.Mutex
	hostPort string // of the request under way
	step     string // before the request; "" once there is a connection
	failed   error  // of that step
}

func (t *connectionTrace) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn:           func(hostPort string) { t.set(hostPort, stepConnect) },
		DNSStart:          func(httptrace.DNSStartInfo) { t.set("", stepDNS) },
		DNSDone:           func(info httptrace.DNSDoneInfo) { t.fail(info.Err) },
		ConnectStart:      func(string, string) { t.set("", stepConnect) },
		ConnectDone:       func(_, _ string, err error) { t.fail(err) },
		TLSHandshakeStart: func() { t.set("", stepTLS) },
		TLSHandshakeDone:  func(_ tls.ConnectionState, err error) { t.fail(err) },
		GotConn:           func(httptrace.GotConnInfo) { t.set("", "") },
	}
}

// fail keeps why the step that was begun last failed.
func (t *connectionTrace) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.failed = err
	}
}

// failure is why there is no connection; nil where there is one, or nobody said.
func (t *connectionTrace) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.step == "" {
		return nil
	}
	return t.failed
}

func (t *connectionTrace) set(hostPort, step string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if hostPort != "" {
		t.hostPort = hostPort
	} else if t.hostPort == "" {
		return // the trace of a request that was given up
	}
	t.step, t.failed = step, nil
}

// reached reports whether a request was begun.
func (t *connectionTrace) reached() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hostPort != ""
}

// place names the host and the step of an attempt at an operation of kms.
func (t *connectionTrace) place(kms, operation string) (host, step string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	host = strings.TrimSuffix(strings.TrimSuffix(t.hostPort, ":443"), ":80")
	switch {
	case host == "":
		return kms, operation
	case t.step != "":
		return host, t.step
	case host != kms && operation != OperationIdentity:
		return host, stepToken
	default:
		return host, operation
	}
}
