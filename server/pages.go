package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// Media types of the documents (sigstore/protobuf-specs).
const (
	mediaTrustedRoot   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	mediaSigningConfig = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	mediaTrustConfig   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// cacheControl lets a document be kept for five minutes, and revalidated by its
// ETag after: a rotation adds to what clients hold, it never contradicts it.
const cacheControl = "public, max-age=300"

// Documents are what clients fetch to trust and to find the service, as JSON.
// An empty one isn't served.
type Documents struct {
	TrustedRoot, SigningConfig, TrustConfig []byte
}

// document is one of them.
type document struct {
	media string
	data  []byte
}

// byPath are the documents by the paths at which they are served.
func (d Documents) byPath() map[string]document {
	return map[string]document{
		"/trusted_root.json":   {mediaTrustedRoot, d.TrustedRoot},
		"/signing_config.json": {mediaSigningConfig, d.SigningConfig},
		"/trust_config.json":   {mediaTrustConfig, d.TrustConfig},
	}
}

// orElse is d, with those of before in the place of empty ones.
func (d Documents) orElse(before Documents) Documents {
	first := func(a, b []byte) []byte {
		if len(a) > 0 {
			return a
		}
		return b
	}
	return Documents{first(d.TrustedRoot, before.TrustedRoot), first(d.SigningConfig, before.SigningConfig), first(d.TrustConfig, before.TrustConfig)}
}

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

// writeTagged answers with v, or with 304 when the client has it.
func writeTagged(w http.ResponseWriter, r *http.Request, media string, v *version) {
	h := w.Header()
	h.Set("ETag", v.tag)
	h.Set("Cache-Control", cacheControl)
	if matches(r.Header.Values("If-None-Match"), v.tag) {
		h.Del("Content-Type")
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", media)
	h.Set("Content-Length", strconv.Itoa(len(v.data)))
	_, _ = w.Write(v.data)
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
