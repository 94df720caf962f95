package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// edge is the transport by which a request came.
type edge string

const (
	edgeGRPC edge = "grpc"
	edgeREST edge = "rest"
)

// endpoint is what a request asks for: a method of the API, which both edges
// have, or a page, which only REST has.
type endpoint struct {
	name       string       // of the log, the metrics and the audit trail, the same on both edges
	rpc        string       // a method's full name in gRPC; "" for a page
	verb, path string       // where REST has a method
	issues     bool         // whether it makes a certificate
	private    bool         // whether its answer is the caller's alone, and kept nowhere
	act        string       // what the audit trail calls it where it is an act of administration; "" for all else
	limit      addressLimit // on the client's address, taken from before anything is read; nil sets none
}

// page reports whether e is no method of the API.
func (e *endpoint) page() bool { return e.rpc == "" }

var (
	createV2 = &endpoint{name: "v2.CreateSigningCertificate", rpc: fulciov2.CA_CreateSigningCertificate_FullMethodName,
		verb: http.MethodPost, path: "/api/v2/signingCert", issues: true, limit: (*limiters).request}
	trustBundle = &endpoint{name: "v2.GetTrustBundle", rpc: fulciov2.CA_GetTrustBundle_FullMethodName,
		verb: http.MethodGet, path: "/api/v2/trustBundle"}
	configuration = &endpoint{name: "v2.GetConfiguration", rpc: fulciov2.CA_GetConfiguration_FullMethodName,
		verb: http.MethodGet, path: "/api/v2/configuration"}
	createV1 = &endpoint{name: "v1beta.CreateSigningCertificate", rpc: fulciov1beta.CA_CreateSigningCertificate_FullMethodName,
		verb: http.MethodPost, path: "/api/v1/signingCert", issues: true, limit: (*limiters).request}
	rootCertificate = &endpoint{name: "v1beta.GetRootCertificate", rpc: fulciov1beta.CA_GetRootCertificate_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/rootCert"}

	methods = []*endpoint{createV2, trustBundle, configuration, createV1, rootCertificate, searchMethod, tellMethod, firstUsesMethod, revokeMethod}
)

// methodAt is the API's method with a full name in gRPC, or at a path in REST.
func methodAt(name string) *endpoint {
	for _, m := range methods {
		if m.rpc == name || m.path == name {
			return m
		}
	}
	return nil
}

// call is what becomes known of one request while it is served. Handlers fill in
// what they learn; finish makes the log line, the metrics and the audit record of it.
type call struct {
	*endpoint
	edge  edge
	start time.Time
	code  int                // the HTTP status of a page that has been sent; 0 where the failure, or none, says it
	who   identity.Principal // zero until the token is verified, and its holder accepted
	key   proof.Key          // zero until possession is shown
	grant access.Grant       // zero until somebody asks for a right
	// refused says whose a genuine token is that nothing is issued for; nil otherwise.
	refused *identity.RefusedError
}

// begin is where a request starts, whichever edge it came by. The context carries
// from here on the request's id (the one that was sent, if that is harmless) and the
// address of its client, which is returned too. The failure is that the address is
// over its limit. Nothing of the request but its head has been read yet.
func (s *Server) begin(ctx context.Context, from string, e *endpoint, h http.Header) (context.Context, netip.Addr, *fault.Error) {
	live := s.live.Load()
	ctx = requestid.With(ctx, requestid.Choose(h.Get(headerRequestID)))
	ctx, client := live.proxies.locate(peer.NewContext(ctx, &peer.Peer{Addr: address(from)}), h.Values(headerForwarded))
	if e.limit == nil {
		return ctx, client, nil
	}
	return ctx, client, s.metrics.limited(e.limit(live.limiters, client, s.now()))
}

// serve is the one chain for every method of the API, once the request is read:
// the in-flight limit, the deadline, handle with a panic caught, and finish. Its
// error is a *fault.Error. ctx is what begin returned.
func serve[T any](ctx context.Context, s *Server, e edge, m *endpoint, handle func(context.Context, *call) (*T, error)) (*T, error) {
	c := &call{endpoint: m, edge: e, start: s.now()}
	if f := s.inFlight.enter(m.issues); f != nil {
		return nil, s.finish(ctx, c, f)
	}
	defer s.inFlight.leave(m.issues)

	limited, cancel := context.WithTimeout(ctx, s.config.RequestTimeout)
	defer cancel()
	var out *T
	err := s.guard(limited, m.name, func() (err error) {
		out, err = handle(limited, c)
		return err
	})
	if err := s.finish(ctx, c, classify(limited, err)); err != nil {
		return nil, err
	}
	return out, nil
}

// guard calls do. It counts a panic in it, logs it with its stack, and makes it an
// error. http.ErrAbortHandler, by which a handler drops its connection, is returned
// as it is.
func (s *Server) guard(ctx context.Context, name string, do func() error) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			err = http.ErrAbortHandler
		default:
			s.metrics.panics.Inc()
			s.logger.LogAttrs(ctx, slog.LevelError, "panic", slog.String("request_id", requestid.From(ctx)),
				slog.String("route", name), slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return do()
}

// classify makes a *fault.Error of err. Where ctx has ended, an unclassified err is
// no defect of ours: the deadline or the client's going caused it, and is the
// reason; err stays as the cause.
func classify(ctx context.Context, err error) *fault.Error {
	f := fault.From(err)
	if f != nil && f.Reason == fault.ReasonInternal && ctx.Err() != nil {
		return fault.From(ctx.Err()).Because(err)
	}
	return f
}

// headerForwarded is the header in which proxies name whom they speak for.
const headerForwarded = "X-Forwarded-For"

// maxForwarded is how many hops of headerForwarded are looked at: more proxies
// than that stand before nobody.
const maxForwarded = 16

// proxies are the networks whose word on their clients' addresses is taken. The zero one
// is for whoever comes by a Unix socket, and has no address.
type proxies []netip.Prefix

func (p proxies) trust(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(network netip.Prefix) bool { return network.Contains(a) || !network.IsValid() && !a.IsValid() })
}

// locate puts the client that a trusted proxy spoke for in the place of ctx's
// peer, which is the other end of the connection. It returns the client's
// address; the zero one when the peer has none.
func (p proxies) locate(ctx context.Context, forwarded []string) (context.Context, netip.Addr) {
	from := peerAddress(ctx)
	if len(forwarded) == 0 || !p.trust(from) {
		return ctx, from
	}
	client := p.client(from, forwarded)
	if client == from {
		return ctx, from
	}
	return peer.NewContext(ctx, &peer.Peer{Addr: address(client.String())}), client
}

// client is who sent a request that came from the peer with the values of
// X-Forwarded-For. Each proxy adds at the end whom it heard, so the list is read
// from there for as long as proxies that are trusted vouch for the one before:
// what a client writes into it himself is never reached.
func (p proxies) client(from netip.Addr, forwarded []string) netip.Addr {
	hops := 0
	for i := len(forwarded) - 1; i >= 0; i-- {
		rest := forwarded[i]
		for rest != "" || hops == 0 {
			if hops++; hops > maxForwarded || !p.trust(from) {
				return from
			}
			at := strings.LastIndexByte(rest, ',')
			next, ok := parseHop(rest[at+1:])
			if !ok {
				return from
			}
			from = next
			rest = rest[:max(at, 0)]
		}
	}
	return from
}

// parseHop reads one entry: an address, which some proxies write with its port.
func parseHop(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// peerAddress is the address of ctx's peer.
func peerAddress(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	a, _ := parseHop(p.Addr.String())
	return a
}

// ClientAddress is the address of the client whose request a handler has; zero where it has none.
func ClientAddress(ctx context.Context) netip.Addr { return peerAddress(ctx) }

// address is a net.Addr made of its text.
type address string

var _ net.Addr = address("")

// Network is always tcp here.
func (address) Network() string { return "tcp" }

func (a address) String() string { return string(a) }
