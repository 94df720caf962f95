package server

import (
	"fmt"
	"net/http"
	"net/netip"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/proto"
)

// Media types of the documents (sigstore/protobuf-specs).
const (
	mediaTrustedRoot   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	mediaSigningConfig = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	mediaTrustConfig   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// route is one path, or one prefix, of the REST port.
type route struct {
	name     string // of the log and the metrics
	allow    string // the value of Allow
	cors     bool
	handlers map[string]http.HandlerFunc // by method
}

// routes are all there is on the REST port: a table whose names are the only
// values of the metrics' route label.
type routes struct {
	exact   map[string]*route
	unknown *route
	pages   map[string]*atomic.Pointer[published] // the documents of the trust root and the index, by path
	mounted atomic.Pointer[mounts]
}

// mounts are the routes of Options.Mounts and Options.Posts. They are replaced whole.
type mounts struct {
	exact    map[string]*route
	prefixes []prefix
}

type prefix struct {
	path  string
	route *route
}

// methodOf is the API's method at a REST path.
func methodOf(path string) method {
	return map[string]method{
		"/api/v2/signingCert": createV2, "/api/v2/trustBundle": trustBundle, "/api/v2/configuration": configuration,
		"/api/v1/signingCert": createV1, "/api/v1/rootCert": rootCertificate,
	}[path]
}

// documentMedia are the media types of the documents, by path.
var documentMedia = map[string]string{
	"/trusted_root.json":   mediaTrustedRoot,
	"/signing_config.json": mediaSigningConfig,
	"/trust_config.json":   mediaTrustConfig,
}

// paths are the documents by path.
func (d Documents) paths() map[string][]byte {
	return map[string][]byte{
		"/trusted_root.json": d.TrustedRoot, "/signing_config.json": d.SigningConfig, "/trust_config.json": d.TrustConfig,
	}
}

// publish serves d from now on, where a document was served before. An empty
// one leaves the old.
func (t *routes) publish(d Documents) {
	for path, data := range d.paths() {
		if page := t.pages[path]; page != nil && len(data) > 0 {
			page.Store(newPublished(data))
		}
	}
}

// newRoutes makes the table.
func (s *Server) newRoutes(o Options) (*routes, error) {
	gateway, err := s.newGateway()
	if err != nil {
		return nil, err
	}
	t := &routes{exact: map[string]*route{}, unknown: &route{name: "unknown"}, pages: map[string]*atomic.Pointer[published]{}}
	for _, path := range []string{"/api/v2/signingCert", "/api/v1/signingCert"} {
		t.add(path, true, http.MethodPost, s.call(methodOf(path), gateway))
	}
	for _, path := range []string{"/api/v2/trustBundle", "/api/v2/configuration", "/api/v1/rootCert"} {
		t.read(path, true, s.cached(s.call(methodOf(path), gateway)))
	}
	t.read("/openapi.json", true, s.document("/openapi.json", "application/json", proto.OpenAPI))
	for path, data := range o.Documents.paths() {
		if len(data) > 0 {
			page := new(atomic.Pointer[published])
			page.Store(newPublished(data))
			t.pages[path] = page
			t.read(path, true, s.publication(path, documentMedia[path], page))
		}
	}
	t.read("/healthz", false, s.live)
	t.read("/readyz", false, s.readyPage)
	index := new(atomic.Pointer[published])
	t.pages["/"] = index
	t.read("/", false, s.publication("/", "text/plain; charset=utf-8", index))
	m, err := s.newMounts(t, o.Mounts, o.Posts)
	if err != nil {
		return nil, err
	}
	t.mount(m)
	return t, nil
}

// newMounts makes the routes of handlers that don't belong to the server.
func (s *Server) newMounts(t *routes, reads, posts map[string]http.Handler) (*mounts, error) {
	m := &mounts{exact: map[string]*route{}}
	for path, handler := range reads {
		if len(path) < 3 || path[0] != '/' || path[len(path)-1] != '/' || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't be mounted: a prefix such as /ctlog/, outside /api/, is needed", path)
		}
		m.prefixes = append(m.prefixes, prefix{path, readRoute(path, true, s.limited(path, (*limiters).read, s.mounted(path, handler)))})
	}
	// Of two that match, the longer wins.
	sort.Slice(m.prefixes, func(i, j int) bool { return len(m.prefixes[i].path) > len(m.prefixes[j].path) })
	for path, handler := range posts {
		if t.exact[path] != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/api/") {
			return nil, fmt.Errorf("server: %q can't take submissions: an own path outside /api/ is needed", path)
		}
		m.exact[path] = onlyRoute(path, false, http.MethodPost, s.limited(path, (*limiters).admit, s.mounted(path, handler)))
	}
	return m, nil
}

// mount serves m from now on, in the place of what was mounted before.
func (t *routes) mount(m *mounts) {
	t.mounted.Store(m)
	t.pages["/"].Store(newPublished(t.index(m)))
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
	for _, p := range m.prefixes {
		if strings.HasPrefix(path, p.path) {
			return p.route
		}
	}
	return t.unknown
}

func (t *routes) add(path string, cors bool, methodName string, h http.HandlerFunc) {
	t.exact[path] = onlyRoute(path, cors, methodName, h)
}

func onlyRoute(name string, cors bool, methodName string, h http.HandlerFunc) *route {
	return &route{name: name, cors: cors, allow: methodName + ", OPTIONS", handlers: map[string]http.HandlerFunc{methodName: h}}
}

// read adds a route for GET and HEAD; net/http cuts the body of an answer to HEAD.
func (t *routes) read(path string, cors bool, h http.HandlerFunc) {
	t.exact[path] = readRoute(path, cors, h)
}

func readRoute(name string, cors bool, h http.HandlerFunc) *route {
	return &route{name: name, cors: cors, allow: "GET, HEAD, OPTIONS",
		handlers: map[string]http.HandlerFunc{http.MethodGet: h, http.MethodHead: h}}
}

// index lists what is served, for a person who opens the URL.
func (t *routes) index(m *mounts) []byte {
	var lines []string
	for _, exact := range []map[string]*route{t.exact, m.exact} {
		for path, r := range exact {
			if path == "/" {
				continue
			}
			lines = append(lines, fmt.Sprintf("%-5s %s", strings.SplitN(r.allow, ",", 2)[0], path))
		}
	}
	for _, p := range m.prefixes {
		lines = append(lines, fmt.Sprintf("%-5s %s…", "GET", p.path))
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i][5:] < lines[j][5:] })
	return []byte("Mayfly, a certificate authority for short-lived code-signing certificates.\n\n" + strings.Join(lines, "\n") + "\n")
}

// mounted serves another handler under a prefix, behind the gate.
func (s *Server) mounted(name string, h http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if f := s.gate.enter(false); f != nil {
			s.refusePage(w, r, name, f)
			return
		}
		defer s.gate.leave(false)
		seen := &observed{ResponseWriter: w, code: http.StatusOK}
		h.ServeHTTP(seen, r)
		var f *fault.Error
		if seen.code >= http.StatusInternalServerError {
			f = fault.New(fault.ReasonInternal, "the handler answered %d", seen.code)
		}
		s.page(r, name, bounded(seen.code), f)
	}
}

// limited is next for addresses that keep to their rate, which take takes from.
func (s *Server) limited(name string, take func(*limiters, netip.Addr, time.Time) *fault.Error, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if f := s.metrics.limited(take(s.terms.Load().limiters, addressOf(r.Context()), s.now())); f != nil {
			s.refusePage(w, r, name, f)
			return
		}
		next(w, r)
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
