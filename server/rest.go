package server

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
	"github.com/mayfly-ca/mayfly/server/internal/restjson"
)

// headerRequestID names a request, in both directions.
const headerRequestID = "X-Request-Id"

// handler answers a request at its route. A failure without an answer is for serveHTTP
// to answer. A method of the API accounts for its request itself, unless it fails.
type handler func(w *timedReply, r *http.Request) *fault.Error

// serveHTTP is the REST port from a request's begin to its finish. gRPC goes to
// its server, everything else to its route.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r) {
		s.serveGRPC(w, r)
		return
	}
	route, r := s.routes.Load().route(r)
	to := route.target(r.Method)
	out, r, f := s.admit(w, r, to.endpoint)
	defer out.leave(r)
	ctx := r.Context()
	out.Header().Set("X-Content-Type-Options", "nosniff")
	if route.cors {
		s.allowOrigin(out, r)
	}
	if f == nil {
		err := s.guard(ctx, to.name, func() error {
			f = to.handle(out, r)
			return nil
		})
		if err == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as net/http does
			panic(err) //nolint:forbidigo // how a handler tells net/http to drop the connection
		}
		if err != nil { // accounted for as a page: the audit trail may be what failed
			to.endpoint, f, out.code = route.page, fault.From(err), 0
		}
	}
	switch {
	case f != nil && out.code == 0:
		if !to.page() || f.Reason == fault.Overloaded {
			out.Header().Set("Connection", "close") // the rest of the body is not waited for
		}
		s.refuse(out, r, to.endpoint, f)
	case to.page():
		_ = s.finish(ctx, &call{endpoint: to.endpoint, edge: edgeREST, start: s.with.Now(), code: knownStatus(out.code)}, f)
	}
}

// knownStatus keeps a handler's own status within a closed set for the metrics.
func knownStatus(code int) int {
	switch {
	case code == 0: // it wrote nothing
		return http.StatusOK
	case http.StatusText(code) == "" && code != statusClientGone:
		return http.StatusInternalServerError
	}
	return code
}

// refuse finishes a request that never reached the API's chain, and answers it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, e *endpoint, f *fault.Error) {
	_ = s.finish(r.Context(), &call{endpoint: e, edge: edgeREST, start: s.with.Now()}, f) // the error is f again
	answerTo(f, requestid.From(r.Context())).write(w)
}

// rest is a method of the API on REST: its body is read here, within the limit, and the
// gateway calls the service, whose method ends in finish.
func (s *Server) rest(m rpcMethod) handler {
	return func(w *timedReply, r *http.Request) *fault.Error {
		if how := r.Header.Get("Content-Encoding"); how != "" && !strings.EqualFold(how, "identity") {
			return fault.New(fault.RequestMalformed, "the body is encoded, as its Content-Encoding says; send it as it is, without that header")
		}
		data, f := s.readBody(w, r, s.config.Limits.BodyBytes)
		if f != nil {
			return f
		}
		w.Header().Set("Cache-Control", "no-store")
		// The gateway sees the token's header alone: what a client accepts, or says that its
		// body is, has no effect. It knows no HEAD.
		inner := *r
		inner.Method, inner.Body, inner.Header = m.verb, restjson.Body(data), http.Header{"Authorization": r.Header["Authorization"]}
		if m.verb != http.MethodGet || m.reads {
			s.gateway.ServeHTTP(w, &inner)
			return nil
		}
		out := &held{ResponseWriter: w, code: http.StatusOK}
		if s.gateway.ServeHTTP(out, &inner); out.code == http.StatusOK {
			writeTagged(w, r, w.Header().Get("Content-Type"), newVersion(out.body.Bytes()))
		} else {
			w.WriteHeader(out.code)
			_, _ = w.Write(out.body.Bytes())
		}
		return nil
	}
}

// firstRoom is the memory, in bytes, that a body gets for its announced length
// alone: most requests fit in. More is only for what has arrived, or a request of
// fifty bytes that never sends its body would hold a thousand times as much.
const firstRoom = 4 << 10

// readBody reads the body within its limit, before anything is made of it. From
// then on the client waits for us.
func (s *Server) readBody(w *timedReply, r *http.Request, limit int) ([]byte, *fault.Error) {
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(fault.BodyTooLarge, "the request's body", limit)
	}
	size := min(max(r.ContentLength, 0)+bytes.MinRead, firstRoom) // MinRead, to meet the end without growing
	data := bytes.NewBuffer(make([]byte, 0, size))
	_, err := data.ReadFrom(http.MaxBytesReader(w, r.Body, int64(limit)))
	if err == nil {
		w.place.work(true)
	} else if !w.place.unlessEvicted(func() {}) {
		if s.inFlight.draining() { // it was on its way when all were told to go
			return nil, shuttingDown()
		}
		return nil, fault.New(fault.Overloaded, "the request came too slowly for the number that are in progress; try again").After(retrySoon)
	}
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return nil, tooLarge(fault.BodyTooLarge, "the request's body", limit)
	case err != nil && r.Context().Err() != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fault.From(r.Context().Err())
	case err != nil:
		return nil, fault.New(fault.RequestMalformed, "the request's body ended early or came too slowly").Because(err)
	}
	return data.Bytes(), nil
}

// allowOrigin lets pages of the configured origins read the answer (Fetch
// standard, CORS protocol). No route looks at cookies.
func (s *Server) allowOrigin(w http.ResponseWriter, r *http.Request) {
	origins := s.config.CORSOrigins
	if len(origins) == 0 {
		return
	}
	h := w.Header()
	if origins[0] == "*" {
		h.Set("Access-Control-Allow-Origin", "*")
	} else {
		h.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if !slices.Contains(origins, origin) {
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
	}
	h.Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After, ETag")
}

// newGateway is what translates REST into calls of the API's methods, which are in this process.
func (s *Server) newGateway(ctx context.Context) (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, restjson.New()),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // Authorization comes through regardless
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(created),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	to := inProcess{s, map[string]rpcMethod{}}
	s.methods(func(_ *grpc.ServiceDesc, methods []rpcMethod) {
		for _, m := range methods {
			to.methods[m.rpc] = m
		}
	})
	return mux, errors.Join(
		fulciov2.RegisterCAHandlerClient(ctx, mux, fulciov2.NewCAClient(to)),
		fulciov1beta.RegisterCAHandlerClient(ctx, mux, fulciov1beta.NewCAClient(to)),
		mayflyv1.RegisterIndexHandlerClient(ctx, mux, mayflyv1.NewIndexClient(to)),
		mayflyv1.RegisterRevocationHandlerClient(ctx, mux, mayflyv1.NewRevocationClient(to)),
	)
}

// inProcess is the gateway's connection to the API.
type inProcess struct {
	server  *Server
	methods map[string]rpcMethod // by full name
}

// Invoke calls a method by the one chain that all calls go through.
func (c inProcess) Invoke(ctx context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	sent, _ := metadata.FromOutgoingContext(ctx)
	answer, err := c.server.serve(metadata.NewIncomingContext(ctx, sent), edgeREST, c.methods[method], func(message proto.Message) *fault.Error {
		proto.Merge(message, in.(proto.Message)) //nolint:forcetypeassert // generated code gives no other
		return nil
	})
	if err == nil {
		proto.Merge(out.(proto.Message), answer.(proto.Message)) //nolint:forcetypeassert // the same
	}
	return err
}

// NewStream is of grpc.ClientConnInterface. The API has no streams.
func (inProcess) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "the API has no streams")
}

// created makes the v1 answer 201: cosign v2 accepts nothing else.
func created(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
	if name, ok := runtime.RPCMethod(ctx); ok && name == createV1.rpc {
		w.WriteHeader(http.StatusCreated)
	}
	return nil
}

// gatewayError answers a failed call. What isn't a *fault.Error never reached the API: the
// gateway couldn't read it. It is refused here, in words that quote nothing of its body.
func (s *Server) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var f *fault.Error
	switch st, ok := status.FromError(err); {
	case errors.As(err, &f):
		answerTo(f, requestid.From(ctx)).write(w)
	case ok && st.Code() == codes.InvalidArgument:
		s.refuse(w, r, methodAt(r.URL.Path), fault.New(fault.RequestMalformed, "%s", st.Message()))
	default:
		s.refuse(w, r, methodAt(r.URL.Path), fault.From(err))
	}
}

// held is an answer that is tagged before it leaves.
type held struct {
	http.ResponseWriter
	code int
	body bytes.Buffer
}

// WriteHeader keeps the status.
func (h *held) WriteHeader(code int) { h.code = code }

// Write keeps the body.
func (h *held) Write(b []byte) (int, error) { return h.body.Write(b) }
