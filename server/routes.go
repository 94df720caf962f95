package server

import (
	"fmt"
	"net/http"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/proto"
)

// routes are all there is on the REST port: a table whose names are the only
// values of the metrics' route label.
type routes struct {
	exact     map[string]*route
	unknown   *route
	index     *document
	documents map[string]*document // of the trust root, by path
	mounted   atomic.Pointer[mounts]
}

// route is one path, or one prefix, of the REST port.
type route struct {
	page    *endpoint // what a request is for that none of the targets answers
	cors    bool
	allow   string            // the value of Allow
	targets map[string]target // by HTTP method
}

// target is where a request goes.
type target struct {
	*endpoint
	handle handler
}

// newRoute makes the route of a path that takes one HTTP method. GET comes with
// HEAD, for which net/http cuts the body of the answer.
func newRoute(path string, cors bool, verb string, to target) *route {
	t := &route{page: &endpoint{name: path}, cors: cors, allow: verb + ", OPTIONS", targets: map[string]target{verb: to}}
	if verb == http.MethodGet {
		t.allow, t.targets[http.MethodHead] = "GET, HEAD, OPTIONS", to
	}
	return t
}

// target is where a request with this HTTP method goes.
func (t *route) target(verb string) target {
	to, ok := t.targets[verb]
	switch {
	case ok:
		return to
	case len(t.targets) == 0:
		return target{t.page, notFound}
	case verb == http.MethodOptions:
		return target{t.page, t.preflight}
	default:
		return target{t.page, t.notAllowed}
	}
}

func notFound(http.ResponseWriter, *http.Request) (int, *fault.Error) {
	return 0, fault.New(fault.RouteUnknown, "nothing is served here; see / for what is")
}

func (t *route) notAllowed(w http.ResponseWriter, _ *http.Request) (int, *fault.Error) {
	w.Header().Set("Allow", t.allow)
	return 0, fault.New(fault.MethodNotAllowed, "this method isn't allowed here; allowed: %s", t.allow)
}

// tracing are the headers that pages add for tracing (W3C Trace Context, Baggage).
// They are read by proxies, and not here.
const tracing = "traceparent, tracestate, baggage"

// preflight answers OPTIONS. Without allowOrigin's header, a browser goes no further.
func (t *route) preflight(w http.ResponseWriter, _ *http.Request) (int, *fault.Error) {
	h := w.Header()
	h.Set("Allow", t.allow)
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", t.allow)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id, If-None-Match, "+tracing)
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
	return http.StatusNoContent, nil
}

// newRoutes makes the table.
func (s *Server) newRoutes(o Options) (*routes, error) {
	gateway, err := s.newGateway()
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	t := &routes{exact: map[string]*route{}, unknown: &route{page: &endpoint{name: "unknown"}}, documents: map[string]*document{}}
	for _, m := range methods {
		if m == revokeMethod && s.revoking == nil {
			continue
		}
		handle := s.api(gateway)
		if !m.issues {
			handle = ownPages(handle)
		}
		if m.verb == http.MethodGet && !m.private {
			handle = cached(handle)
		}
		t.exact[m.path] = newRoute(m.path, true, m.verb, target{m, handle})
	}
	page := func(path string, cors bool, handle handler) {
		t.exact[path] = newRoute(path, cors, http.MethodGet, target{&endpoint{name: path}, handle})
	}
	page("/openapi.json", true, s.counted(newDocument("application/json", proto.OpenAPI).serve))
	o.Documents.each(func(path, media string, data []byte) {
		t.documents[path] = newDocument(media, data)
		page(path, true, s.counted(t.documents[path].serve))
	})
	page("/healthz", false, healthPage)
	page("/readyz", false, s.readyPage)
	t.index = newDocument("text/plain; charset=utf-8", nil)
	page("/", false, s.counted(s.home(t.index.serve)))
	m, err := s.newMounts(t, o.Mounts, o.Posts, o.Timestamps)
	if err != nil {
		return nil, err
	}
	t.mount(m)
	return t, nil
}

// publish serves d from now on, where a document was served before. An empty
// one leaves the old.
func (t *routes) publish(d Documents) {
	d.each(func(path, _ string, data []byte) {
		if served := t.documents[path]; served != nil {
			served.current.Store(newVersion(data))
		}
	})
}

// mounts are the routes of Options.Mounts, Options.Posts and Options.Timestamps. They are replaced whole.
type mounts struct {
	exact    map[string]*route
	prefixes []*route // their names are the prefixes; of two that match, the first wins: the longer
}

// newMounts makes the routes of handlers that don't belong to the server.
func (s *Server) newMounts(t *routes, reads, posts map[string]http.Handler, stamps Timestamps) (*mounts, error) {
	m := &mounts{exact: map[string]*route{}}
	for path, h := range reads {
		if len(path) < 3 || path[0] != '/' || path[len(path)-1] != '/' || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't be mounted: a prefix such as /ctlog/, outside /api/, is needed", path)
		}
		to := target{&endpoint{name: path, limit: (*limiters).logRead}, s.counted(mounted(h))}
		m.prefixes = append(m.prefixes, newRoute(path, true, http.MethodGet, to))
	}
	if s.page != nil {
		for path, verb := range s.page.Paths() {
			one := newRoute(path, false, verb, target{&endpoint{name: path, limit: (*limiters).request}, s.counted(mounted(s.page))})
			if strings.HasSuffix(path, "/") {
				m.prefixes = append(m.prefixes, one)
			} else {
				m.exact[path] = one
			}
		}
	}
	sort.Slice(m.prefixes, func(i, j int) bool { return len(m.prefixes[i].page.name) > len(m.prefixes[j].page.name) })
	for path, h := range posts {
		if t.exact[path] != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't take submissions: an own path outside /api/ is needed", path)
		}
		to := target{&endpoint{name: path, limit: (*limiters).request}, s.counted(mounted(h))}
		m.exact[path] = newRoute(path, false, http.MethodPost, to)
	}
	s.mountTimestamps(m, stamps)
	return m, nil
}

// mount serves m from now on, in the place of what was mounted before.
func (t *routes) mount(m *mounts) {
	t.mounted.Store(m)
	t.index.current.Store(newVersion(t.list(m)))
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
	m := t.mounted.Load()
	if r, ok := m.exact[path]; ok {
		return r
	}
	for _, r := range m.prefixes {
		if strings.HasPrefix(path, r.page.name) {
			return r
		}
	}
	return t.unknown
}

// list says what is served, for a person who opens the URL.
func (t *routes) list(m *mounts) []byte {
	var lines []string
	for _, exact := range []map[string]*route{t.exact, m.exact} {
		for path, r := range exact {
			if path != "/" {
				lines = append(lines, fmt.Sprintf("%-5s %s", strings.SplitN(r.allow, ",", 2)[0], path))
			}
		}
	}
	for _, r := range m.prefixes {
		lines = append(lines, fmt.Sprintf("%-5s %s…", "GET", r.page.name))
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i][5:] < lines[j][5:] })
	return []byte("Mayfly, a certificate authority for short-lived code-signing certificates.\n\n" + strings.Join(lines, "\n") + "\n")
}

// home is the page for whoever wants HTML, as browsers do, and the list for all others.
func (s *Server) home(list handler) handler {
	if s.page == nil {
		return list
	}
	visit := mounted(s.page)
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
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
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		if f := s.inFlight.enter(false); f != nil {
			return 0, f
		}
		defer s.inFlight.leave(false)
		return h(w, r)
	}
}

// mounted is another's handler. A status of its own that says that it failed goes
// to the log as an error.
func mounted(h http.Handler) handler {
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		sent := &observed{ResponseWriter: w, code: http.StatusOK}
		h.ServeHTTP(sent, r)
		if sent.code >= http.StatusInternalServerError {
			return bounded(sent.code), fault.New(fault.ReasonInternal, "the handler answered %d", sent.code)
		}
		return bounded(sent.code), nil
	}
}

// bounded keeps a handler's own status within a closed set for the metrics.
func bounded(code int) int {
	if http.StatusText(code) == "" {
		return http.StatusInternalServerError
	}
	return code
}

// observed remembers the status that was written.
type observed struct {
	http.ResponseWriter
	code int
}

// WriteHeader remembers code.
func (o *observed) WriteHeader(code int) {
	o.code = code
	o.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach what is beneath.
func (o *observed) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// ownPages refuses what a browser sends for a page of another origin, and would change
// something: `mayfly dev` asks no token of who sits before the machine.
func ownPages(h handler) handler {
	foreign := http.NewCrossOriginProtection()
	return func(w http.ResponseWriter, r *http.Request) (int, *fault.Error) {
		if foreign.Check(r) != nil {
			return 0, fault.New(fault.AccessDenied, "a browser sent this for a page of another origin")
		}
		return h(w, r)
	}
}
