package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

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
	name       string // of the log, the metrics and the audit trail, the same on both edges
	rpc        string // a method's full name in gRPC; "" for a page
	verb, path string // where REST has a method
	issues     bool   // whether it makes a certificate
	reads      bool   // whether it takes the right to read; its answer is the caller's alone, and kept nowhere
	act        string // what the audit trail calls it where it is an act of administration; "" for all else
	limit      *limit // on the client's address, taken from before anything is read; nil sets none
}

// page reports whether e is no method of the API.
func (e *endpoint) page() bool { return e.rpc == "" }

var (
	createV2 = &endpoint{name: "v2.CreateSigningCertificate", rpc: fulciov2.CA_CreateSigningCertificate_FullMethodName,
		verb: http.MethodPost, path: "/api/v2/signingCert", issues: true, limit: limitAddress}
	trustBundle = &endpoint{name: "v2.GetTrustBundle", rpc: fulciov2.CA_GetTrustBundle_FullMethodName,
		verb: http.MethodGet, path: "/api/v2/trustBundle"}
	configuration = &endpoint{name: "v2.GetConfiguration", rpc: fulciov2.CA_GetConfiguration_FullMethodName,
		verb: http.MethodGet, path: "/api/v2/configuration"}
	createV1 = &endpoint{name: "v1beta.CreateSigningCertificate", rpc: fulciov1beta.CA_CreateSigningCertificate_FullMethodName,
		verb: http.MethodPost, path: "/api/v1/signingCert", issues: true, limit: limitAddress}
	rootCertificate = &endpoint{name: "v1beta.GetRootCertificate", rpc: fulciov1beta.CA_GetRootCertificate_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/rootCert"}

	endpoints = []*endpoint{createV2, trustBundle, configuration, createV1, rootCertificate, searchMethod, tellMethod, firstUsesMethod, revokeMethod}
)

// methodAt is the API's method with a full name in gRPC, or at a path in REST.
func methodAt(name string) *endpoint {
	for _, m := range endpoints {
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
// over its limit. Nothing of the request but its head has been read yet. The span of a
// request for the API begins here.
func (s *Server) begin(ctx context.Context, from string, e *endpoint, h http.Header) (context.Context, netip.Addr, *fault.Error) {
	live := s.live.Load()
	other, _ := parseHop(from) // the other end of the connection
	client := live.proxies.client(other, h.Values(headerForwarded))
	if client != other {
		from = client.String()
	}
	ctx = peer.NewContext(requestid.With(ctx, requestid.Choose(h.Get(headerRequestID))), &peer.Peer{Addr: address(from)})
	now := s.with.Now()
	if e.limit != nil {
		if f := s.metrics.limited(live.limiters.address(e.limit, client, now)); f != nil {
			return ctx, client, f
		}
	}
	if !e.page() {
		ctx = s.with.Tracer.Begin(ctx, e.name, h, now)
	}
	return ctx, client, nil
}

// serve is the one chain for every method of the API: read decodes the request, and then
// come the in-flight limit, the deadline, the method with a panic caught, and finish. Its
// error is a *fault.Error. ctx is what begin returned.
func (s *Server) serve(ctx context.Context, e edge, m rpcMethod, read func(message proto.Message) *fault.Error) (any, error) {
	c := &call{endpoint: m.endpoint, edge: e, start: s.with.Now()}
	decode := func(in any) error {
		message, _ := in.(proto.Message)
		if f := read(message); f != nil {
			return s.finish(ctx, c, f)
		}
		return nil
	}
	return m.desc.Handler(m.service, ctx, decode, func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (out any, err error) {
		if f := s.inFlight.enter(m.issues); f != nil {
			return nil, s.finish(ctx, c, f)
		}
		defer s.inFlight.leave(m.issues)

		limited, cancel := context.WithTimeout(context.WithValue(ctx, callKey{}, c), s.config.RequestTimeout)
		defer cancel()
		err = s.guard(limited, m.name, func() (err error) {
			if m.reads {
				err = s.mayRead(limited)
			}
			if err == nil {
				out, err = handle(limited, in)
			}
			return err
		})
		if err := s.finish(ctx, c, classify(limited, err)); err != nil {
			return nil, err
		}
		return out, nil
	})
}

type callKey struct{}

// callOf is the call that a method of the API answers.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
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
			s.with.Logger.LogAttrs(ctx, slog.LevelError, "panic", slog.String("request_id", requestid.From(ctx)),
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

// client is who sent a request that came from the peer with the values of
// X-Forwarded-For. Each proxy adds at the end whom it heard, so the list is read
// from there for as long as proxies that are trusted vouch for the one before:
// what a client writes into it himself is never reached.
func (p proxies) client(from netip.Addr, forwarded []string) netip.Addr {
	rest := strings.Join(forwarded, ",")
	for range maxForwarded {
		at := strings.LastIndexByte(rest, ',')
		next, ok := parseHop(rest[at+1:])
		if !ok || !p.trust(from) {
			break
		}
		from, rest = next, rest[:max(at, 0)]
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

// ClientAddress is the address of the client whose request has ctx; the zero one when it has none.
func ClientAddress(ctx context.Context) netip.Addr {
	a, _ := parseHop(remote(ctx))
	return a
}

// address is a net.Addr made of its text.
type address string

// Network is always tcp here.
func (address) Network() string { return "tcp" }

func (a address) String() string { return string(a) }
