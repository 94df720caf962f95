package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/proto"
)

// routes are all there is on the REST port: a table whose names are the only
// values of the metrics' route label. It never changes: another takes its place.
type routes struct {
	served   Served // what it is made of
	exact    map[string]*route
	prefixes []*route // their names are the prefixes; of two that match, the first wins: the longer
	unknown  *route
}

// route is one path, or one prefix, of the REST port.
type route struct {
	page  *endpoint // what a request is for that the target doesn't answer
	cors  bool
	verb  string // the one HTTP method that it takes, HEAD with GET; "" for none
	allow string // the value of Allow
	to    target
}

// target is where a request goes.
type target struct {
	*endpoint
	handle handler
}

// newRoute makes the route of a path that takes one HTTP method. GET comes with
// HEAD, for which net/http cuts the body of the answer.
func newRoute(path string, cors bool, verb string, to target) *route {
	allow := verb + ", OPTIONS"
	if verb == http.MethodGet {
		allow = "GET, HEAD, OPTIONS"
	}
	return &route{page: &endpoint{name: path}, cors: cors, verb: verb, allow: allow, to: to}
}

// target is where a request with this HTTP method goes.
func (t *route) target(verb string) target {
	switch {
	case t.verb == "":
		return target{t.page, notFound}
	case verb == t.verb, verb == http.MethodHead && t.verb == http.MethodGet:
		return t.to
	case verb == http.MethodOptions:
		return target{t.page, t.preflight}
	default:
		return target{t.page, t.notAllowed}
	}
}

func notFound(*timedReply, *http.Request) *fault.Error {
	return fault.New(fault.RouteUnknown, "nothing is served here; see / for what is")
}

func (t *route) notAllowed(w *timedReply, _ *http.Request) *fault.Error {
	w.Header().Set("Allow", t.allow)
	return fault.New(fault.MethodNotAllowed, "this method isn't allowed here; allowed: %s", t.allow)
}

// traceHeaders are what pages add for tracing (W3C Trace Context, Baggage). The first is
// read where requests are traced; the others are for proxies.
const traceHeaders = "traceparent, tracestate, baggage"

// preflight answers OPTIONS. Without allowOrigin's header, a browser goes no further.
func (t *route) preflight(w *timedReply, _ *http.Request) *fault.Error {
	h := w.Header()
	h.Set("Allow", t.allow)
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", t.allow)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id, If-None-Match, "+traceHeaders)
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// newRoutes makes the table.
func (s *Server) newRoutes(o Served) (*routes, error) {
	t := &routes{served: o, exact: map[string]*route{}, unknown: &route{page: &endpoint{name: "unknown"}}}
	s.methods(func(_ *grpc.ServiceDesc, methods []rpcMethod) {
		for _, m := range methods {
			handle := s.rest(m)
			if !m.issues {
				handle = ownPages(handle)
			}
			t.exact[m.path] = newRoute(m.path, true, m.verb, target{m.endpoint, handle})
		}
	})
	page := func(path string, cors bool, handle handler) {
		t.exact[path] = newRoute(path, cors, http.MethodGet, target{&endpoint{name: path}, handle})
	}
	page("/openapi.json", true, s.document("application/json", proto.OpenAPI))
	for _, d := range []struct {
		path, media string
		data        []byte
	}{
		{"/trusted_root.json", trustroot.TrustedRootMediaType, o.Documents.TrustedRoot},
		{"/signing_config.json", trustroot.SigningConfigMediaType, o.Documents.SigningConfig},
		{"/trust_config.json", trustroot.TrustConfigMediaType, o.Documents.TrustConfig},
	} {
		if len(d.data) > 0 {
			page(d.path, true, s.document(d.media, d.data))
		}
	}
	page("/healthz", false, healthPage)
	page("/readyz", false, s.readyPage)
	for path, h := range o.Mounts {
		if len(path) < 3 || path[0] != '/' || path[len(path)-1] != '/' || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't be mounted: a prefix such as /ctlog/, outside /api/, is needed", path)
		}
		to := target{&endpoint{name: path, limit: limitReads}, s.counted(mounted(h))}
		t.prefixes = append(t.prefixes, newRoute(path, true, http.MethodGet, to))
	}
	if s.with.Page != nil {
		for path, verb := range s.with.Page.Paths() {
			one := newRoute(path, false, verb, target{&endpoint{name: path, limit: limitAddress}, s.counted(mounted(s.with.Page))})
			if strings.HasSuffix(path, "/") {
				t.prefixes = append(t.prefixes, one)
			} else {
				t.exact[path] = one
			}
		}
	}
	slices.SortFunc(t.prefixes, func(a, b *route) int { return len(b.page.name) - len(a.page.name) })
	for path, h := range o.Posts {
		if t.exact[path] != nil || len(path) < 2 || path[0] != '/' || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't take submissions: an own path outside /api/ is needed", path)
		}
		to := target{&endpoint{name: path, limit: limitAddress}, s.counted(mounted(h))}
		t.exact[path] = newRoute(path, false, http.MethodPost, to)
	}
	if stamps := o.Timestamps; stamps != nil {
		stamp := target{&endpoint{name: timestamp.Path, limit: limitStamps}, s.counted(s.stamp(stamps))}
		t.exact[timestamp.Path] = newRoute(timestamp.Path, true, http.MethodPost, stamp)
		page(timestamp.ChainPath, true, s.counted(func(w *timedReply, r *http.Request) *fault.Error {
			writeTagged(w, r, pemChain, newVersion(stamps.PEM()))
			return nil
		}))
	}
	page("/", false, s.home(s.document("text/plain; charset=utf-8", t.list())))
	return t, nil
}

// route is the route of r, and r with the path that the route has. Slashes that are
// doubled or at the end come from clients that put a URL and a path together; but for
// a log's, whose paths are its own, they mean nothing.
func (t *routes) route(r *http.Request) (*route, *http.Request) {
	found := t.find(r.URL.Path)
	if found != t.unknown {
		return found, r
	}
	plain := "/" + strings.Join(strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' }), "/")
	if found = t.exact[plain]; found == nil {
		return t.unknown, r
	}
	to := *r.URL
	to.Path, to.RawPath = plain, ""
	same := *r
	same.URL = &to
	return found, &same
}

// find is the route of a path; the unknown one when there is none.
func (t *routes) find(path string) *route {
	if r, ok := t.exact[path]; ok {
		return r
	}
	for _, r := range t.prefixes {
		if strings.HasPrefix(path, r.page.name) {
			return r
		}
	}
	return t.unknown
}

// list says what is served, for a person who opens the URL.
func (t *routes) list() []byte {
	var lines []string
	for path, r := range t.exact {
		lines = append(lines, fmt.Sprintf("%-5s %s", r.verb, path))
	}
	for _, r := range t.prefixes {
		lines = append(lines, fmt.Sprintf("%-5s %s…", r.verb, r.page.name))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	return []byte("Mayfly, a certificate authority for short-lived code-signing certificates.\n\n" + strings.Join(lines, "\n") + "\n")
}

// home is the page for whoever wants HTML, as browsers do, and the list for all others.
func (s *Server) home(list handler) handler {
	if s.with.Page == nil {
		return list
	}
	visit := s.counted(mounted(s.with.Page))
	return func(w *timedReply, r *http.Request) *fault.Error {
		w.Header().Add("Vary", "Accept")
		if strings.Contains(r.Header.Get("Accept"), "text/html") {
			return visit(w, r)
		}
		return list(w, r)
	}
}

// counted is a page whose requests count as in flight, and are refused once the
// server shuts down.
func (s *Server) counted(h handler) handler {
	return func(w *timedReply, r *http.Request) *fault.Error {
		if f := s.inFlight.enter(false); f != nil {
			return f
		}
		defer s.inFlight.leave(false)
		return h(w, r)
	}
}

// mounted is another's handler. A status of its own that says that it failed goes
// to the log as an error.
func mounted(h http.Handler) handler {
	return func(w *timedReply, r *http.Request) *fault.Error {
		h.ServeHTTP(w, r)
		if w.code >= http.StatusInternalServerError {
			return fault.New(fault.ReasonInternal, "the handler answered %d", w.code)
		}
		return nil
	}
}

// ownPages refuses what a browser sends for a page of another origin, and would change
// something: `mayfly dev` asks no token of who sits before the machine.
func ownPages(h handler) handler {
	foreign := http.NewCrossOriginProtection()
	return func(w *timedReply, r *http.Request) *fault.Error {
		if foreign.Check(r) != nil {
			return fault.New(fault.AccessDenied, "a browser sent this for a page of another origin")
		}
		return h(w, r)
	}
}
