package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestMetricsAreForKnownHosts(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config, _ *Options) {
		c.MetricsAddress, c.MetricsHosts = "Metrics.Internal:2112", []string{"mayfly.monitoring.svc"}
	})
	page := r.server.newMetricsHTTP(t.Context()).Handler
	for host, want := range map[string]int{
		"127.0.0.1:2112": 200, "127.0.0.1": 200, "[::1]:2112": 200, "[::1]": 200, "localhost:2112": 200, "LOCALHOST": 200,
		"10.1.2.3:2112": 200, "metrics.internal:2112": 200, "mayfly.monitoring.svc:2112": 200, "Mayfly.Monitoring.svc": 200,

		"evil.example:2112": 421, "evil.example": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "x.localhost": 421, "": 421,
		"mayfly.monitoring.svc.evil.example": 421, "127.0.0.1@evil.example": 421, "a:b:c": 421,
	} {
		for _, path := range []string{"/metrics", "/nowhere"} {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
			request.Host = host
			recorder := httptest.NewRecorder()
			page.ServeHTTP(recorder, request)
			got := recorder.Code
			if path == "/nowhere" && got == 404 {
				got = 200
			}
			if got != want {
				t.Errorf("%q %s: %d, want %d", host, path, recorder.Code, want)
			}
		}
	}
}
