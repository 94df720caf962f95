package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestPostsAtTheirPathOnly: what takes submissions takes them at its own path only, with POST
// only, and within the limit on an address.
func TestPostsAtTheirPathOnly(t *testing.T) {
	t.Parallel()
	const path = "/ctlog/2027/ct/v1/add-chain"
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	r := newRig(t, func(c *Config, o *Options) {
		c.RateLimits.PerAddress = Rate{Rate: 0.001, Burst: 2}
		o.Mounts = map[string]http.Handler{"/ctlog/2027/": echo}
		o.Posts = map[string]http.Handler{path: echo}
	})
	if response := r.send(t, http.MethodPost, path, []byte("hello")); response.StatusCode != 200 || text(t, response) != "hello" {
		t.Errorf("POST: %d", response.StatusCode)
	}
	readRefusal(t, r.send(t, http.MethodGet, path, nil), 405, fault.MethodNotAllowed)
	readRefusal(t, r.send(t, http.MethodPost, "/ctlog/2027/ct/v1/add-pre-chain", []byte("x")), 405, fault.MethodNotAllowed)
	_ = r.send(t, http.MethodPost, path, []byte("2"))
	readRefusal(t, r.send(t, http.MethodPost, path, []byte("3")), 429, fault.RateExceeded)
}

func TestPostsHavePathsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/api/v2/signingCert", "/healthz", "ctlog", "/api/x"} {
		r := newRig(t)
		if _, err := r.server.newRoutes(Served{Posts: map[string]http.Handler{path: http.NotFoundHandler()}}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestLogReadsHaveTheirOwnLimit: what is mounted is read within a limit of its own, by address.
func TestLogReadsHaveTheirOwnLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config, o *Options) {
		c.RateLimits.LogReads = Rate{Rate: 0.001, Burst: 2}
		o.Mounts = map[string]http.Handler{"/ctlog/2027/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "tile") })}
	})
	for range 2 {
		if response := r.send(t, http.MethodGet, "/ctlog/2027/checkpoint", nil); response.StatusCode != 200 || text(t, response) != "tile" {
			t.Errorf("GET: %d", response.StatusCode)
		}
	}
	refused := r.send(t, http.MethodGet, "/ctlog/2027/checkpoint", nil)
	if refused.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if b := readRefusal(t, refused, 429, fault.RateExceeded); b.Details[0].Metadata["limit"] != limitReads.name {
		t.Errorf("the limit is %q", b.Details[0].Metadata["limit"])
	}
	if response := r.send(t, http.MethodGet, "/healthz", nil); response.StatusCode != 200 {
		t.Errorf("another page: %d", response.StatusCode)
	}
}
