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

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/tracing"
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
	OperationIdentity = "identity" // whose credential it is, with a token
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
	metrics  *Metrics
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
			s.metrics.observe(ctx, s.backend, operation, outcomeOK, began, s.Now())
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
	s.metrics.observe(ctx, s.backend, operation, failed.outcome, began, s.Now())
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
func (s *Service) attempt(ctx context.Context, do func(ctx context.Context) error) (reached, error) {
	if err := ctx.Err(); err != nil {
		return reached{}, err
	}
	at := new(connectionTrace)
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(ctx, at.trace()), attemptTimeout)
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = errors.Join(ctx.Err(), err) // SDKs don't always say so
	}
	return at.now(), err
}

// classified says what the error of one attempt means.
func (s *Service) classified(err error, at reached) Classified {
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
func classifyNetwork(err error, reached reached) Classified {
	if reached.step != "" && reached.failed != nil {
		err = errors.Join(err, reached.failed) // some SDKs keep no more than a text of it
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
	case reached.hostPort != "": // a request was begun
		return Classified{OutcomeUnavailable, true, ""}
	default:
		return Classified{OutcomeOther, false, ""} // before any request: not the network's fault
	}
}

// networkText is the part of an error that says what happened: an SDK's wrapping
// and the URL are known from elsewhere.
func networkText(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}

// OneLine bounds a text that others wrote, for logs.
func OneLine(text string) string { return oneline.Clean(text, 300) }

// connectionTrace is how far one attempt came. An SDK may make several requests
// in one attempt; the last one counts.
type connectionTrace struct {
	mu sync.Mutex
	reached
}

// reached is how far a request came.
type reached struct {
	hostPort string // of the request under way
	step     string // before the request; "" once there is a connection
	failed   error  // of that step
}

func (t *connectionTrace) now() reached {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reached
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

// place names the host and the step of an attempt at an operation of kms.
func (t reached) place(kms, operation string) (host, step string) {
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

// Outcome is how a call to a KMS ended: a metric label, from a closed list.
type Outcome string

// The outcomes of calls that failed.
const (
	OutcomeThrottled   Outcome = "throttled"   // a quota is used up
	OutcomeDenied      Outcome = "denied"      // the principal may not
	OutcomeUnusable    Outcome = "unusable"    // disabled, deleted, not found
	OutcomeUnavailable Outcome = "unavailable" // no connection, or the service's own fault
	OutcomeWrong       Outcome = "wrong"       // an answer that doesn't verify
	OutcomeOther       Outcome = "other"

	outcomeOK       Outcome = "ok"
	outcomeTimeout  Outcome = "timeout"  // no answer in time
	outcomeCanceled Outcome = "canceled" // the caller went away
)

// OutcomeOf is what an HTTP status means that refuses a request to a KMS.
func OutcomeOf(status int) Outcome {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return OutcomeDenied
	case status == http.StatusNotFound, status == http.StatusConflict:
		return OutcomeUnusable
	case status == http.StatusTooManyRequests:
		return OutcomeThrottled
	case status == http.StatusRequestTimeout, status >= http.StatusInternalServerError:
		return OutcomeUnavailable
	default:
		return OutcomeOther
	}
}

// Text is an error of this outcome in words for the operator. A call that is
// throttled or finds its service unavailable is made again.
func (o Outcome) Text(text string) Classified {
	return Classified{o, o == OutcomeThrottled || o == OutcomeUnavailable, text}
}

// Metrics count the calls of all keys that are opened with them.
type Metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics makes metrics, which show once their [Metrics.Collectors] are registered.
func NewMetrics() *Metrics {
	return &Metrics{
		calls: metric.Counter("mayfly_kms_calls_total",
			"Calls to key management services, each with all of its attempts, by backend, operation and outcome.", "backend", "operation", "outcome"),
		seconds: metric.Histogram("mayfly_kms_call_seconds",
			"Time that a call to a key management service took with all of its attempts, in seconds.",
			[]float64{.001, .0025, .005, .01, .02, .035, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 15}, "backend", "operation"),
	}
}

// Collectors are all of them, to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.calls, m.seconds}
}

func (m *Metrics) observe(ctx context.Context, backend, operation string, o Outcome, began, ended time.Time) {
	m.calls.WithLabelValues(backend, operation, string(o)).Inc()
	m.seconds.WithLabelValues(backend, operation).Observe(ended.Sub(began).Seconds())
	failed := string(o)
	if o == outcomeOK {
		failed = ""
	}
	tracing.Step(ctx, backend, began, ended, failed)
}

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
	roots, err := pemfile.PoolFile(a.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
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
