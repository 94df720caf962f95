package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
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

// handler answers a request at its route. It returns the status of the answer
// that it has sent; a failure without a status is for serveHTTP to answer. Neither
// means that the API's chain has answered, and accounted for it.
type handler func(w http.ResponseWriter, r *http.Request) (code int, f *fault.Error)

// serveHTTP is the REST port from a request's begin to its finish. gRPC goes to
// its server, everything else to its route.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r) {
		s.serveGRPC(w, r)
		return
	}
	route, r := s.routes.route(r)
	to := route.target(r.Method)
	out, r, f := s.admit(w, r, to.endpoint)
	defer out.leave(r)
	w = out
	ctx := r.Context()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if route.cors {
		s.allowOrigin(w, r)
	}
	code := 0
	if f == nil {
		err := s.guard(ctx, to.name, func() error {
			code, f = to.handle(w, r)
			return nil
		})
		if err == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as net/http does
			panic(err) //nolint:forbidigo // how a handler tells net/http to drop the connection
		}
		if err != nil { // accounted for as a page: the audit trail may be what failed
			to.endpoint, f = route.page, fault.From(err)
		}
	}
	switch {
	case f == nil && code == 0: // the API's chain has done the rest
	case code != 0:
		_ = s.finish(ctx, &call{endpoint: to.endpoint, edge: edgeREST, start: s.now(), code: code}, f)
	default:
		if !to.page() || f.Reason == fault.Overloaded {
			w.Header().Set("Connection", "close") // the rest of the body is not waited for
		}
		s.refuse(w, r, to.endpoint, f)
	}
}

// refuse finishes a request that never reached the API's chain, and answers it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, e *endpoint, f *fault.Error) {
	_ = s.finish(r.Context(), &call{endpoint: e, edge: edgeREST, start: s.now()}, f) // the error is f again
	answerTo(f, requestid.From(r.Context())).write(w)
}

// api hands a request of the API to the gateway, once its body is read. The
// gateway calls the service, whose method ends in finish.
func (s *Server) api(gateway http.Handler) handler {
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		if how := r.Header.Get("Content-Encoding"); how != "" && !strings.EqualFold(how, "identity") {
			return 0, fault.New(fault.RequestMalformed, "the body is encoded, as its Content-Encoding says; send it as it is, without that header")
		}
		data, f := s.readBody(w, r, s.config.Limits.BodyBytes)
		if f != nil {
			return 0, f
		}
		inner := new(http.Request)
		*inner = *r
		inner.Body = restjson.Body(data)
		inner.Header = gatewayHeader(r.Header)
		if r.Method == http.MethodHead { // the gateway knows none
			inner.Method = http.MethodGet
		}
		w.Header().Set("Cache-Control", "no-store")
		gateway.ServeHTTP(w, inner)
		return 0, nil
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

// readBody reads the body within its limit, before anything is made of it. From
// then on the client waits for us.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, *fault.Error) {
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(fault.BodyTooLarge, "the request's body", limit)
	}
	size := min(r.ContentLength, firstRoom)
	if size < 0 {
		size = 512
	}
	data, err := readAll(http.MaxBytesReader(w, r.Body, int64(limit)), int(size))
	if out, ok := w.(*timedReply); ok {
		if err == nil {
			out.place.work(true)
		} else if !out.place.unlessEvicted(func() {}) {
			return nil, fault.New(fault.Overloaded, "the request came too slowly for the number that are in progress; try again").After(retryOverload)
		}
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

// newGateway translates REST into calls of the API, in process.
func (s *Server) newGateway() (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, restjson.New()),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // Authorization comes through regardless
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(created),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	unused := context.TODO() //nolint:forbidigo // the registrations ask for a context and make no use of it
	return mux, errors.Join(
		fulciov2.RegisterCAHandlerServer(unused, mux, fulcioV2{server: s, edge: edgeREST}),
		fulciov1beta.RegisterCAHandlerServer(unused, mux, fulcioV1Beta{server: s, edge: edgeREST}),
		mayflyv1.RegisterIndexHandlerServer(unused, mux, searching{server: s, edge: edgeREST}),
		mayflyv1.RegisterRevocationHandlerServer(unused, mux, revocation{server: s, edge: edgeREST}),
	)
}

// created makes the v1 answer 201: cosign v2 accepts nothing else.
func created(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
	if name, ok := runtime.RPCMethod(ctx); ok && name == createV1.rpc {
		w.WriteHeader(http.StatusCreated)
	}
	return nil
}

// gatewayError answers a failed call. What isn't a *fault.Error never reached the
// API: the gateway could not decode it. It is refused here, in the words of
// restjson, which say where the request is wrong and quote nothing of it.
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

// cached serves the successes of h with ETag and Cache-Control.
func cached(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		held := &recorder{header: w.Header(), code: http.StatusOK}
		if _, f := h(held, r); f != nil {
			return 0, f
		}
		if held.code != http.StatusOK {
			w.WriteHeader(held.code)
			_, _ = w.Write(held.body.Bytes())
			return 0, nil
		}
		writeTagged(w, r, w.Header().Get("Content-Type"), newVersion(held.body.Bytes()))
		return 0, nil
	}
}

// recorder holds an answer back, all but its header.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header is the real one.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader keeps the status.
func (r *recorder) WriteHeader(code int) { r.code = code }

// Write keeps the body.
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

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
