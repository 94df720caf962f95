package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// headerRequestID names a request, in both directions.
const headerRequestID = "X-Request-Id"

// serveHTTP is the REST port: gRPC goes to its server, everything else to its route.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.serveGRPC(w, r)
		return
	}
	id := r.Header.Get(headerRequestID)
	if !requestid.Harmless(id) {
		id = requestid.New()
	}
	w.Header().Set(headerRequestID, id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	ctx := requestid.With(r.Context(), id)
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: address(r.RemoteAddr)})
	ctx, _ = s.located(ctx, r.Header.Values(headerForwarded))
	s.dispatch(w, r.WithContext(ctx))
}

// dispatch finds the route of r. A panic outside the API's own chain ends here.
func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) {
	t := s.routes.find(r.URL.Path)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as net/http does
			panic(p) //nolint:forbidigo // how a handler tells net/http to drop the connection
		}
		s.panicked(r.Context(), t.name, p)
		s.refusePage(w, r, t.name, fault.From(fmt.Errorf("panic: %v", p)))
	}()
	if t.cors {
		s.allowOrigin(w, r)
	}
	switch handler, allowed := t.handlers[r.Method], t.allow; {
	case handler != nil:
		handler(w, r)
	case r.Method == http.MethodOptions && len(t.handlers) > 0:
		t.preflight(w, r)
		s.page(r, t.name, http.StatusNoContent, nil)
	case len(t.handlers) == 0:
		s.refusePage(w, r, t.name, fault.New(fault.RouteUnknown, "nothing is served here; see / for what is"))
	default:
		w.Header().Set("Allow", allowed)
		s.refusePage(w, r, t.name, fault.New(fault.MethodNotAllowed, "this method isn't allowed here; allowed: %s", allowed))
	}
}

// newGateway translates REST into calls of the API, in process.
func (s *Server) newGateway() (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, codec{}),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // Authorization comes through regardless
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(created),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	unused := context.TODO() //nolint:forbidigo // the registrations ask for a context and make no use of it
	if err := fulciov2.RegisterCAHandlerServer(unused, mux, fulcioV2{server: s, edge: edgeREST}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if err := fulciov1beta.RegisterCAHandlerServer(unused, mux, fulcioV1Beta{server: s, edge: edgeREST}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return mux, nil
}

// created makes the v1 answer 201: cosign v2 accepts nothing else.
func created(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
	if name, ok := runtime.RPCMethod(ctx); ok && name == fulciov1beta.CA_CreateSigningCertificate_FullMethodName {
		w.WriteHeader(http.StatusCreated)
	}
	return nil
}

// gatewayError writes a failed call. What isn't a *fault.Error never reached
// the API: the gateway could not decode it, in words of codec that hold nothing
// of the body, so that it is accounted for here.
func (s *Server) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var f *fault.Error
	if !errors.As(err, &f) {
		f = undecodable(err)
		s.refuse(ctx, methodOf(r.URL.Path), edgeREST, f)
	}
	answerTo(f, requestid.From(ctx)).write(w)
}

// call answers the API's method m at its route.
func (s *Server) call(m method, gateway http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f := s.admit(m, addressOf(r.Context()))
		var data []byte
		if f == nil {
			data, f = s.readBody(w, r)
		}
		if f != nil {
			s.refuse(r.Context(), m, edgeREST, f)
			w.Header().Set("Connection", "close") // the rest of the body is not waited for
			answerTo(f, requestid.From(r.Context())).write(w)
			return
		}
		inner := new(http.Request)
		*inner = *r
		inner.Body = newBody(data)
		inner.Header = gatewayHeader(r.Header)
		w.Header().Set("Cache-Control", "no-store")
		gateway.ServeHTTP(w, inner)
	}
}

// gatewayHeader is what of h the gateway may see: the token's header. What a
// client accepts, or says that its body is, has no effect.
func gatewayHeader(h http.Header) http.Header {
	out := make(http.Header, 1)
	if v, ok := h["Authorization"]; ok {
		out["Authorization"] = v
	}
	return out
}

// firstRoom is the memory, in bytes, that a body gets for its announced length
// alone: most requests fit in. More is only for what has arrived, or a request of
// fifty bytes that never sends its body would hold a thousand times as much.
const firstRoom = 4 << 10

// readBody reads the body within its limit, before anything is made of it.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *fault.Error) {
	limit := s.config.Limits.BodyBytes
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(fault.BodyTooLarge, "the request's body", limit)
	}
	size := min(r.ContentLength, firstRoom)
	if size < 0 {
		size = 512
	}
	data, err := readAll(http.MaxBytesReader(w, r.Body, int64(limit)), int(size))
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return nil, tooLarge(fault.BodyTooLarge, "the request's body", limit)
	case err != nil && r.Context().Err() != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fault.From(r.Context().Err())
	case err != nil:
		return nil, fault.New(fault.RequestMalformed, "the request's body ended early or came too slowly").Because(err)
	}
	return data, nil
}

// readAll is io.ReadAll with room for size bytes from the start.
func readAll(r io.Reader, size int) ([]byte, error) {
	b := make([]byte, 0, size+1) // one more, to meet the end without growing
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// address is a net.Addr made of its text.
type address string

var _ net.Addr = address("")

// Network is always tcp here.
func (address) Network() string { return "tcp" }

func (a address) String() string { return string(a) }
