package server

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

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
	page := promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Registry: s.registry, MaxRequestsInFlight: scrapes})
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
