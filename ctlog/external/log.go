// Package external submits to Certificate Transparency logs that somebody runs
// elsewhere, over RFC 6962's add-pre-chain, which static-ct logs speak as well.
//
// certificate-transparency-go has the messages, but not the exchange: its client's own
// retries lose the cause, hammer a log that answers 408, and slow down for life.
package external

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// Config is an external log's part of the configuration.
type Config = ctlog.ExternalConfig

// Options are what a log needs besides its configuration.
type Options struct {
	Now     func() time.Time      // nil: time.Now; for the breaker
	Logger  *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: nothing is registered

	transport http.RoundTripper // nil but in tests: one of the log's own, as the configuration describes the way
}

// How the log is spoken to.
const (
	dialTimeout     = 5 * time.Second
	answerTimeout   = 8 * time.Second // from the request's end to the answer's start
	pingAfter       = 5 * time.Second // an HTTP/2 connection that is silent for so long is asked whether it lives
	pingTimeout     = 3 * time.Second // and given up when it says nothing for so long
	maxAnswer       = 64 << 10        // bytes of an answer to a submission
	maxRoots        = 16 << 20        // bytes of a get-roots answer: public logs list thousands
	maxRefusal      = 200             // bytes of a log's own words that reach our log
	userAgent       = "mayfly (+https://github.com/mayfly-ca/mayfly)"
	breakerFailures = 5                // outages in a row that open the breaker
	breakerPause    = 10 * time.Second // how long it stays open before one submission tries again
)

// Log is an external log. It is a [ctlog.Log], safe for concurrent use, and
// holds no goroutine; [Log.Close] drops its idle connections.
type Log struct {
	description ctlog.Description
	transport   http.RoundTripper
	bearer      bearer // where there is a token
	o           Options
	inFlight    chan struct{}
	breaker     *breaker
	roots       roots
}

var _ ctlog.Log = (*Log)(nil)

// New makes a log from its configuration: it reads the key, CA and token files,
// and sends nothing.
func New(c Config, o Options) (*Log, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	description, err := Describe(ctlog.FrozenConfig{URL: c.URL, KeyFile: c.KeyFile, Operator: c.Operator, Start: c.Start, End: c.End})
	if err != nil {
		return nil, err
	}
	l := &Log{description: description, o: o, breaker: &breaker{now: o.Now}}
	l.inFlight = make(chan struct{}, cmp.Or(max(c.MaxInFlight, 0), ctlog.DefaultMaxInFlight))
	if !c.Token.IsZero() {
		token, err := c.Token.Read()
		if err != nil {
			return nil, fmt.Errorf("the log %s: its token: %w", c.URL, err)
		}
		below, err := url.Parse(description.URL + "/") // to be written as requests have it: HTTPS: as https:
		if err != nil {
			return nil, fmt.Errorf("the log %s: %w", c.URL, err)
		}
		l.bearer = bearer{below: below.String(), token: "Bearer " + string(token)}
	}
	if l.transport = o.transport; l.transport == nil {
		if l.transport, err = newTransport(c); err != nil {
			return nil, fmt.Errorf("the log %s: %w", c.URL, err)
		}
	}
	l.bearer.next = l.transport
	if err := metric.Register(o.Metrics, l.gauges()...); err != nil {
		return nil, fmt.Errorf("the log %s: %w", l.description.URL, err)
	}
	return l, nil
}

// gauges show the state of the breaker and what the log said of its roots.
func (l *Log) gauges() []prometheus.Collector {
	log := prometheus.Labels{"log": l.description.URL}
	return []prometheus.Collector{
		metric.Read("mayfly_ctlog_breaker_open", "1 while an external log is left alone after repeated failures, else 0.",
			log, func() float64 { return metric.Bool(l.breaker.ready() != nil) }),
		metric.Read("mayfly_ctlog_roots_refused", "1 when an external log's list of roots has none of this CA's certificates any more, else 0.",
			log, func() float64 { return metric.Bool(l.Roots().Refused) }),
		metric.Read("mayfly_ctlog_roots_checked_timestamp_seconds", "When an external log last said which roots it accepts, in seconds since 1970; 0 before that.",
			log, func() float64 { return float64(max(l.Roots().Checked.Unix(), 0)) }),
	}
}

// Describe is what the trust root says of a log: it reads the key file.
func Describe(c ctlog.FrozenConfig) (ctlog.Description, error) {
	spki, err := ReadKey(string(c.KeyFile))
	if err != nil {
		return ctlog.Description{}, fmt.Errorf("the log %s: %w", c.URL, err)
	}
	return ctlog.Description{
		ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(c.URL, "/"),
		Operator: c.Operator, Start: c.Start, End: c.End,
	}, nil
}

// ReadKey reads one public key, P-256.
func ReadKey(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading its key: %w", err)
	}
	spki, _, err := pemfile.PublicKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := ctlog.ParseKey(spki); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return spki, nil
}

// Description is what the trust root says of the log.
func (l *Log) Description() ctlog.Description { return l.description }

// Reader is a client for the log, over its own transport. What is below the log's URL is
// asked for with the token; a monitoring URL elsewhere never sees it.
func (l *Log) Reader() *http.Client {
	c := &http.Client{
		Transport: l.transport,
		// A redirect would carry the submission, and its token, to a place that nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if l.bearer.token != "" {
		c.Transport = l.bearer
	}
	return c
}

// Close drops the idle connections.
func (l *Log) Close() { (&http.Client{Transport: l.transport}).CloseIdleConnections() }

// Ready is nil unless the log has failed so often that it is left alone for now.
// It sends nothing.
func (l *Log) Ready(context.Context) error { return l.breaker.ready() }

// Submit asks the log for an SCT, and again after an outage, until ctx ends. The
// SCT is not verified: that is the policy's.
//
// Errors: a *fault.Error with reason LogUnavailable when the log is down, slow,
// overloaded or left alone after outages; an unclassified error when it refused
// the chain or its answer makes no sense; the context's error when that ends first.
func (l *Log) Submit(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	select {
	case l.inFlight <- struct{}{}:
		defer func() { <-l.inFlight }()
	default:
		return ctlog.SCT{}, fault.New(fault.LogUnavailable, "too many submissions wait for the transparency log; try again").
			With("dependency", "ctlog").After(time.Second)
	}
	if err := l.breaker.enter(); err != nil {
		return ctlog.SCT{}, err
	}
	sct, err := l.retry(ctx, chain)
	l.breaker.leave(ctx, err)
	return sct, err
}

// newTransport is one log's own: a connection that hangs is no other log's trouble.
func newTransport(c Config) (*http.Transport, error) {
	roots, err := pemfile.PoolFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("the CA file: %w", err)
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
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
	}
	switch {
	case c.Address != "": // connected to in place of the URL's own host, so that Host and TLS name the log as it names itself
		u, err := url.Parse(c.URL)
		if err != nil {
			return nil, fmt.Errorf("its URL: %w", err)
		}
		own := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))
		t.Proxy = nil // which would look up names by itself
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.EqualFold(address, own) { // else the log is read at another host, which is found by its own name
				address = c.Address
			}
			return dialer.DialContext(ctx, network, address)
		}
	case c.Proxy == ctlog.ProxyNone:
		t.Proxy = nil
	case c.Proxy != "":
		u, err := url.Parse(c.Proxy)
		if err != nil {
			return nil, fmt.Errorf("its proxy: %w", err)
		}
		t.Proxy = http.ProxyURL(u)
	}
	return t, nil
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

// How often a log is asked which roots it accepts.
const (
	rootsInterval = 24 * time.Hour
	rootsAgain    = 10 * time.Minute // after an answer that was none, or a refusal
	rootsTimeout  = 30 * time.Second
)

// errNoRoot is in the error for an answer of get-roots without any of the CA's certificates.
var errNoRoot = errors.New("ask its operator to add the root")

// roots is what the log said that it accepts.
type roots struct {
	mu       sync.RWMutex
	accepted map[[32]byte]bool // SHA-256 of each certificate; nil: it was never asked
	last     Roots
}

// Roots is what a log said of the CA's chain.
type Roots struct {
	Checked time.Time // of the last answer; zero: none yet
	Refused bool      // that answer had none of the CA's certificates
	Err     error     // of the last attempt; nil when it was good
}

// Roots is what the last check found.
func (l *Log) Roots() Roots {
	l.roots.mu.RLock()
	defer l.roots.mu.RUnlock()
	return l.roots.last
}

// CheckRoots asks the log for the certificates that it accepts; all later chains
// are cut at the first of them. chain is the CA's: issuing certificate first, root
// last.
//
// It is an error when the log accepts none: it would refuse every certificate. After
// any other error, when it can't be asked, what it said before stays.
func (l *Log) CheckRoots(ctx context.Context, chain [][]byte) error {
	accepted, err := l.askRoots(ctx)
	l.roots.mu.Lock()
	defer l.roots.mu.Unlock()
	if err != nil {
		l.roots.last.Err = err
		return err
	}
	l.roots.accepted = accepted
	l.roots.last = Roots{Checked: l.o.Now()}
	if cut(accepted, chain) == 0 {
		l.roots.last.Refused = true
		l.roots.last.Err = fmt.Errorf("the log %s accepts none of this CA's %d certificates; %w", l.description.URL, len(chain), errNoRoot)
	}
	return l.roots.last.Err
}

// askRoots is get-roots (RFC 6962 §4.7).
func (l *Log) askRoots(ctx context.Context) (map[[32]byte]bool, error) {
	var body ct.GetRootsResponse
	if err := l.exchange(ctx, http.MethodGet, ct.GetRootsPath, nil, maxRoots, &body); err != nil {
		return nil, fmt.Errorf("asking the log %s for its roots: %w", l.description.URL, err)
	}
	accepted := make(map[[32]byte]bool, len(body.Certificates))
	for _, text := range body.Certificates {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("the log %s lists a root that isn't base64: %w", l.description.URL, err)
		}
		accepted[sha256.Sum256(der)] = true
	}
	return accepted, nil
}

// cut is how many certificates of the chain lead to one that is accepted; 0: none does.
func cut(accepted map[[32]byte]bool, chain [][]byte) int {
	for i, der := range chain {
		if accepted[sha256.Sum256(der)] {
			return i + 1
		}
	}
	return 0
}

// request is the body of add-pre-chain: the precertificate and what is above it,
// up to the certificate that the log accepts; all of it when it accepts none, for
// the log to say so itself.
func (l *Log) request(chain ctlog.Chain) ([]byte, error) {
	l.roots.mu.RLock()
	accepted := l.roots.accepted
	l.roots.mu.RUnlock()
	issuers := chain.Issuers
	if n := cut(accepted, issuers); n > 0 {
		issuers = issuers[:n]
	}
	return json.Marshal(ct.AddChainRequest{Chain: append([][]byte{chain.Precertificate}, issuers...)})
}

// WatchRoots checks every day whether the log still accepts the chain that the CA
// issues under, more often while it doesn't or can't be asked, until ctx ends. A
// log that stops accepting it is an alarm: the metric and the log say so, and
// Roots; submissions go on, since the log itself is the judge. It returns nil.
func (l *Log) WatchRoots(ctx context.Context, chain func() [][]byte) error {
	for next := rootsInterval; wait.For(ctx, next) == nil; {
		next = rootsInterval
		refused := l.Roots().Refused
		asking, cancel := context.WithTimeout(ctx, rootsTimeout)
		err := l.CheckRoots(asking, chain())
		cancel()
		switch {
		case ctx.Err() != nil: // it was cut off, and says nothing
		case errors.Is(err, errNoRoot):
			next = rootsAgain
			if !refused {
				l.o.Logger.ErrorContext(ctx, "a log stopped accepting this CA's certificates", slog.String("log", l.description.URL), slog.Any("error", err))
			}
		case err != nil:
			next = rootsAgain
			l.o.Logger.WarnContext(ctx, "a log can't be asked for its roots", slog.String("log", l.description.URL), slog.Any("error", err))
		case refused:
			l.o.Logger.InfoContext(ctx, "a log accepts this CA's certificates again", slog.String("log", l.description.URL))
		}
	}
	return nil
}
