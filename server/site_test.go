package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// site says what it was asked for, and by whom.
type site struct{}

func (site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/full" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write([]byte(r.Method + " " + r.URL.Path + " of " + ClientAddress(r.Context()).String()))
}

func (site) Paths() map[string]string {
	return map[string]string{"/pages/": http.MethodGet, "/full": http.MethodGet, "/leave": http.MethodPost}
}

// TestPage: the page is at its paths, and at / for whoever wants HTML; a reload leaves it.
func TestPage(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) {
		o.Page = site{}
		o.Dependencies = []Dependency{
			{Name: "log", Check: func(context.Context) error { return nil }},
			{Name: "tuf", Check: func(context.Context) error { return errors.New("secret") }, Informational: true, Detail: func() []string { return []string{"nothing yet"} }},
		}
	})
	const html = "text/html,application/xhtml+xml,*/*;q=0.8"
	for range 2 {
		for _, tt := range []struct {
			method, path, accept string
			status               int
			want                 string
		}{
			{http.MethodGet, "/", html, 200, "GET / of 192.0.2.1"},
			{http.MethodGet, "/", "*/*", 200, "GET   /pages/…"},
			{http.MethodGet, "/pages/one/two", html, 200, "GET /pages/one/two"},
			{http.MethodGet, "/full", html, 503, "GET /full"},
			{http.MethodPost, "/leave", html, 200, "POST /leave"},
		} {
			response := r.send(t, tt.method, tt.path, nil, "Accept", tt.accept)
			if got := text(t, response); response.StatusCode != tt.status || !strings.Contains(got, tt.want) {
				t.Errorf("%s %s: %d %s", tt.method, tt.path, response.StatusCode, got)
			}
			if tt.path == "/" && response.Header.Get("Vary") != "Accept" {
				t.Errorf("%s may be kept for everybody: %v", tt.path, response.Header)
			}
		}
		readRefusal(t, r.send(t, http.MethodPost, "/pages/", nil), 405, fault.MethodNotAllowed)
		readRefusal(t, r.send(t, http.MethodGet, "/leave", nil), 405, fault.MethodNotAllowed)
		if origin := r.send(t, http.MethodGet, "/pages/", nil, "Origin", "https://evil.example").Header.Get("Access-Control-Allow-Origin"); origin != "" {
			t.Errorf("pages of another origin may read the page: %s", origin)
		}
		r.prepare(t, r.server.config, nil)()
	}
	all := r.server.Standings(t.Context())
	if len(all) != 2 || !all[0].Works || all[1].Works || !all[1].Informational || all[1].Detail[0] != "nothing yet" {
		t.Errorf("%+v", all)
	}
}
