package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"mime"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// cacheControl lets a document be kept for five minutes, and revalidated by its
// ETag after: a rotation adds to what clients hold, it never contradicts it.
const cacheControl = "public, max-age=300"

// Documents are what clients fetch to trust and to find the service, as JSON.
// An empty one isn't served.
type Documents = trustroot.Documents

// version is one state of a document, and the validator that tells it from others.
type version struct {
	data []byte
	tag  string
}

// newVersion computes the strong validator of data (RFC 9110 §8.8.3).
func newVersion(data []byte) *version {
	sum := sha256.Sum256(data)
	return &version{data, `"` + hex.EncodeToString(sum[:16]) + `"`}
}

// document is the page of a document.
func (s *Server) document(media string, data []byte) handler {
	v := newVersion(data)
	return s.counted(func(w *timedReply, r *http.Request) *fault.Error {
		writeTagged(w, r, media, v)
		return nil
	})
}

// writeTagged answers with v, or with 304 when the client has it. No other condition has
// a say, nor does a range.
func writeTagged(w http.ResponseWriter, r *http.Request, media string, v *version) {
	h := w.Header()
	h.Set("ETag", v.tag)
	h.Set("Cache-Control", cacheControl)
	h.Set("Content-Type", media)
	asked := &http.Request{Method: r.Method, Header: http.Header{"If-None-Match": {strings.Join(r.Header.Values("If-None-Match"), ",")}}}
	http.ServeContent(w, asked, "", time.Time{}, bytes.NewReader(v.data))
}

const (
	// scrapes is how many requests for metrics are answered at once: each answer
	// is made whole.
	scrapes = 4
	// metricsConnections is how many connections the metrics listener keeps.
	metricsConnections = 64
	// profileTime is the longest profile.
	profileTime = time.Minute
)

// newMetricsHTTP makes the server of /metrics.
func (s *Server) newMetricsHTTP(ctx context.Context) *http.Server {
	mux := http.NewServeMux()
	page := promhttp.HandlerFor(s.with.Metrics, promhttp.HandlerOpts{Registry: s.with.Metrics, MaxRequestsInFlight: scrapes})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		// The server's own deadline is for profiles.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.config.Limits.WriteTimeout))
		page.ServeHTTP(w, r)
	})
	if s.config.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return s.limitedHTTP(ctx, s.forKnownHosts(mux), profileTime)
}

// forKnownHosts refuses a request for a host that the metrics listener isn't known
// by. A page in somebody's browser that gives its own name an address of this
// network (DNS rebinding) would read the metrics otherwise. It can't make a browser
// send an address or `localhost` for its own name.
func (s *Server) forKnownHosts(next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(s.config.MetricsAddress) // it was checked
	known := append([]string{strings.ToLower(own)}, s.config.MetricsHosts...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host)
		if _, err := netip.ParseAddr(host); err != nil && !loopback.Host(host) && !slices.Contains(known, host) {
			http.Error(w, "this host isn't known here: ask for an address or localhost, or have the operator add the name to server.metrics_hosts", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostOf is the host of a Host header in lower case, without port and brackets.
func hostOf(header string) string {
	host, _, err := net.SplitHostPort(header)
	if err != nil {
		host = strings.Trim(header, "[]")
	}
	return strings.ToLower(host)
}

// maxQuery is the largest query for a timestamp, in bytes: real ones have 60 to 300.
const maxQuery = 4 << 10

// Timestamps gives timestamps. timestamp.InForce does.
type Timestamps interface {
	// ReplyDER answers a query of RFC 3161. There is a reply to every query; the
	// failure is nil where it grants a timestamp.
	ReplyDER(ctx context.Context, query []byte) ([]byte, *fault.Error)
	// ReplyJSON is ReplyDER for the form of sigstore's timestamp-authority.
	ReplyJSON(ctx context.Context, query []byte) ([]byte, *fault.Error)
	// PEM is the chain that timestamps verify with.
	PEM() []byte
}

// stamp answers queries. RFC 3161 §3.4 has a refusal in the reply, with status 200, as
// openssl and stock servers do; but what may pass by itself has a status that has
// clients try again. Who asks in JSON reads no refusal in a reply, and gets the API's.
func (s *Server) stamp(t Timestamps) handler {
	return func(w *timedReply, r *http.Request) *fault.Error {
		body, f := s.readBody(w, r, maxQuery)
		if f != nil {
			return f
		}
		if f := s.stamping.enter(true); f != nil {
			return f
		}
		defer s.stamping.leave(true)
		ctx, cancel := context.WithTimeout(r.Context(), s.config.RequestTimeout)
		defer cancel()
		var reply []byte
		a := answer{outcome: outcome{http: http.StatusOK}}
		if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/json" {
			if reply, f = t.ReplyJSON(ctx, body); f != nil {
				return f
			}
		} else if reply, f = t.ReplyDER(ctx, body); f != nil && f.Kind() != fault.Malformed {
			a = answerTo(f, "")
		}
		a.send(w, "application/timestamp-reply", reply)
		return f
	}
}
