// Package server is the edge of Mayfly: the Fulcio v2 and v1beta API over gRPC
// and REST, health, and the documents that clients fetch. It decodes, limits,
// and answers; who the caller is, what a key is worth and what a certificate
// says is decided by the packages it calls.
//
// A request comes in at one of two edges: serveHTTP (rest.go, with its table in
// routes.go) or serveGRPC (grpc.go). net/http has the connections of both. Both call
// admit, which gives the request an id, its client's address, that address's limit
// (request.go) and a place (places.go), and read its body. A method of the API then
// goes through serve, with the in-flight limit and the deadline, to the service and
// issue (issue.go). Every request ends in finish (accounting.go): audit record,
// metrics, log line. REST is served in process: nothing is dialled.
//
// Listen opens the addresses, Serve answers until its context ends and then
// drains, Prepare readies other settings while requests go on.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/tracing"
)

// Identity verifies tokens. identity.Verifier is one.
type Identity interface {
	// Authenticate returns a verified principal, or an error that fault.From
	// classifies. Where the token is genuine and refused all the same, the error is an
	// *identity.RefusedError, for the record.
	Authenticate(ctx context.Context, token string) (identity.Principal, error)
	// Issuers lists the accepted issuers, in a stable order.
	Issuers() []identity.IssuerConfig
}

// Keys verifies possession of keys. proof.Policy is one.
type Keys interface {
	// Signature returns the key of spki (PEM or DER) if sig is by it over a
	// challenge of who; otherwise a *fault.Error.
	Signature(spki, sig []byte, who identity.Principal) (proof.Key, error)
	// CSR returns the key of a certificate signing request that it has signed;
	// otherwise a *fault.Error.
	CSR(pem []byte) (proof.Key, error)
}

// CA issues certificates. ca.Issuer is one.
type CA interface {
	// Issue returns a logged and checked certificate, or an error that
	// fault.From classifies. It records in the audit trail what it begins.
	Issue(ctx context.Context, who identity.Principal, key proof.Key) (*ca.Certificate, error)
	// Chains are all chains that certificates may verify with, each in DER from
	// the issuing certificate to the root; the first is the active one.
	Chains() [][][]byte
}

// Dependency is something that must work for certificates to be issued.
type Dependency struct {
	// Name is what /readyz calls it.
	Name string
	// Check is nil when it works, and a [fault.Warning], for anybody to read, when it
	// does but calls for an operator. It ends when ctx ends. Any other error goes to
	// the log, never to the client.
	Check func(ctx context.Context) error
	// Detail, if there is one, gives the lines that `/readyz?verbose` has below
	// the name. Anybody may read them.
	Detail func() []string
	// Informational is for what `/readyz?verbose` tells and no certificate needs:
	// its failing doesn't decide readiness, and whoever watches it logs it. Its
	// Check costs nothing, since every such request makes it.
	Informational bool
}

// Served is what a Server serves beside the API. [Server.Prepare] takes another while it runs.
type Served struct {
	Documents Documents
	// Mounts are further read-only handlers, by path prefix ("/ctlog/"). They see
	// the whole path, and only GET and HEAD.
	Mounts map[string]http.Handler
	// Posts are handlers that anybody may POST to, by exact path, such as those
	// of a log that takes submissions. They count towards an address's rate
	// limit, and bound their bodies themselves. Usually there is none.
	Posts map[string]http.Handler
	// Timestamps answers at the paths of package timestamp; nil serves none there.
	Timestamps Timestamps
}

// Options are what a Server works with. Identity, Keys, CA, Auditor, Metrics and Now are
// required.
type Options struct {
	Identity Identity
	Keys     Keys
	CA       CA
	Access   *access.Access // nil gives nobody a right
	Auditor  audit.Recorder // of refusals
	Served
	// Dependencies decide readiness. Names are unique.
	Dependencies []Dependency
	// Index finds what was issued; nil keeps none.
	Index *index.Index
	// Revocation revokes certificates; nil revokes none.
	Revocation *revoke.Revoker
	// Page is what people see; nil: a list of what is served, at /.
	Page Page
	// HTTPListener takes the place of http_address for a caller that must know
	// the port before the documents can be written; nil opens the address. The
	// Server closes it.
	HTTPListener net.Listener
	// Logger takes one line a request; nil discards.
	Logger *slog.Logger
	// Metrics is registered with and served at /metrics.
	Metrics *prometheus.Registry
	// Tracer begins spans of requests for the API; nil begins none.
	Tracer *tracing.Tracer
	// Now is the clock of logs, records and durations.
	Now func() time.Time
}

// Server serves the API. New makes one, Listen opens its addresses, Serve runs it.
type Server struct {
	config  Config
	with    Options
	metrics *metrics

	live      atomic.Pointer[liveSettings]
	inFlight  *inFlightLimit
	stamping  *inFlightLimit // of timestamps, which inFlight counts as well
	ready     *readiness
	routes    atomic.Pointer[routes]
	listeners listeners

	places  *places // of all requests
	streams *places // of those that stay open
	grpc    *grpc.Server
	gateway http.Handler // of REST to the methods of the API
}

// Page is a site for people. It is at / for whoever wants HTML, and at its own paths:
// those that end in / with all that is below.
type Page interface {
	http.Handler
	Paths() map[string]string // each with its method
}

// New makes a Server. It opens nothing, starts nothing and doesn't keep ctx.
func New(ctx context.Context, c Config, o Options) (*Server, error) {
	var f setting.Faults
	c.Check("server", &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	if o.Identity == nil || o.Keys == nil || o.CA == nil || o.Auditor == nil || o.Metrics == nil || o.Now == nil {
		return nil, errors.New("server: Identity, Keys, CA, Auditor, Metrics and Now are required")
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	s := &Server{
		config: c, with: o, inFlight: newInFlightLimit(c.Limits.Issuances), stamping: newInFlightLimit(c.Limits.Timestamps),
		places: newPlaces(c.Limits.Issuances+waitingPlaces, turnedAway), streams: newPlaces(streamPlaces, streamPlaces),
	}
	s.live.Store(newLiveSettings(c, nil))
	var err error
	if s.metrics, err = newMetrics(s.with.Metrics, s.inFlight.count, s.with.Now); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if s.ready, err = newReadiness(o.Dependencies, s.inFlight, s.with.Now, s.with.Logger); err != nil {
		return nil, err
	}
	if err = metric.Register(s.with.Metrics, s.ready.working, s.ready.warns); err != nil {
		return nil, fmt.Errorf("server: registering metrics: %w", err)
	}
	if s.gateway, err = s.newGateway(ctx); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	t, err := s.newRoutes(o.Served)
	if err != nil {
		return nil, err
	}
	s.routes.Store(t)
	s.grpc = s.newGRPC()
	return s, nil
}

// liveSettings are the part of the configuration that can change while the Server
// runs. They are replaced whole.
type liveSettings struct {
	tokenBytes int
	limiters   *limiters
	proxies    proxies
}

// newLiveSettings makes what c, which was checked, says. used are the limiters
// that callers keep what they have used of, or nil.
func newLiveSettings(c Config, used *limiters) *liveSettings {
	l := &liveSettings{
		tokenBytes: c.Limits.TokenBytes, limiters: newLimiters(c.RateLimits, used), proxies: make([]netip.Prefix, 0, len(c.TrustedProxies)),
	}
	for _, text := range c.TrustedProxies {
		if p, err := parseNetwork(text); err == nil {
			l.proxies = append(l.proxies, p)
		}
	}
	return l
}

// Publish puts other documents in the place of those that are served, and leaves
// everything else as it is.
func (s *Server) Publish(d Documents) {
	next := s.routes.Load().served
	next.Documents = d
	if t, err := s.newRoutes(next); err == nil { // the rest was taken before
		s.routes.Store(t)
	}
}

// Prepare checks c and next, which take the place of what a running Server has, and
// reads the certificate. It opens nothing and changes nothing. An error is a
// *setting.FaultError. commit, which can't fail, puts both in force; the caller publishes
// nothing before. Requests in flight go on.
//
// Of c that is: tls (other files, not whether), rate_limits, trusted_proxies,
// limits.issuances, limits.timestamps and limits.token_bytes. The rest is bound when the
// Server starts, and has no effect here.
func (s *Server) Prepare(c Config, next Served) (commit func(), err error) {
	var f setting.Faults
	c.Check("server", &f)
	var pair *certificates
	current := s.listeners.certificates
	if current != nil && f.Len() == 0 {
		if pair, err = loadCertificates(c.TLS, s.with.Logger); err != nil {
			f.Add("server.tls", "%v", err)
		}
	}
	t, err := s.newRoutes(next)
	f.When(err != nil, "server", "%v", err)
	if err := f.Err(); err != nil {
		return nil, err
	}
	return func() {
		s.live.Store(newLiveSettings(c, s.live.Load().limiters))
		s.inFlight.set(c.Limits.Issuances)
		s.stamping.set(c.Limits.Timestamps)
		s.places.set(c.Limits.Issuances + waitingPlaces)
		s.routes.Store(t)
		if pair != nil {
			current.become(pair)
		}
	}, nil
}
