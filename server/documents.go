package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// cacheControl lets a document be kept for five minutes, and revalidated by its
// ETag after: a rotation adds to what clients hold, it never contradicts it.
const cacheControl = "public, max-age=300"

// document serves data, which doesn't change.
func (s *Server) document(name, media string, data []byte) http.HandlerFunc {
	var page atomic.Pointer[published]
	page.Store(newPublished(data))
	return s.publication(name, media, &page)
}

// published is one version of a document.
type published struct {
	data []byte
	tag  string
}

func newPublished(data []byte) *published { return &published{data, etag(data)} }

// publication serves the version of a document that is in force.
func (s *Server) publication(name, media string, page *atomic.Pointer[published]) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if f := s.gate.enter(false); f != nil {
			s.refusePage(w, r, name, f)
			return
		}
		defer s.gate.leave(false)
		p := page.Load()
		s.page(r, name, writeTagged(w, r, media, p.tag, p.data), nil)
	}
}

// cached serves the successes of h with ETag and Cache-Control.
func (s *Server) cached(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		held := &recorder{header: w.Header(), code: http.StatusOK}
		inner := new(http.Request)
		*inner = *r
		inner.Method = http.MethodGet // the gateway knows no HEAD
		h(held, inner)
		if held.code != http.StatusOK {
			w.WriteHeader(held.code)
			_, _ = w.Write(held.body.Bytes())
			return
		}
		writeTagged(w, r, w.Header().Get("Content-Type"), etag(held.body.Bytes()), held.body.Bytes())
	}
}

// writeTagged answers with data, or with 304 when the client has it. It returns the status.
func writeTagged(w http.ResponseWriter, r *http.Request, media, tag string, data []byte) int {
	h := w.Header()
	h.Set("ETag", tag)
	h.Set("Cache-Control", cacheControl)
	if matches(r.Header.Values("If-None-Match"), tag) {
		h.Del("Content-Type")
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	h.Set("Content-Type", media)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data)
	return http.StatusOK
}

// etag is a strong validator of data (RFC 9110 §8.8.3).
func etag(data []byte) string {
	sum := sha256.Sum256(data)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// matches is the weak comparison that If-None-Match asks for (RFC 9110 §13.1.2).
func matches(values []string, tag string) bool {
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == tag {
				return true
			}
		}
	}
	return false
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

// preflight answers OPTIONS. Without allowOrigin's header, a browser goes no further.
func (t *route) preflight(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Allow", t.allow)
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", t.allow)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id, If-None-Match")
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
}
