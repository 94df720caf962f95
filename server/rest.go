package server

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
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
