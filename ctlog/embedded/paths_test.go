package embedded_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever isn't written as the grammar has it is 404, never a way to somewhere else;
// another method than a path has is 405.
func TestEachThingHasOnePath(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.publishes(t, l, nil, 1)
	for path, want := range map[string]int{
		"/checkpoint": 200, "/ct/v1/get-sth": 200,
		"//checkpoint": 404, "/./checkpoint": 404, "/tile/../checkpoint": 404, "/checkpoint/": 404, "/%63heckpoint": 404,
		"/ct/v1//get-sth": 404, "/ct/v1/get-sth/": 404, "/ct/v1/../v1/get-sth": 404, "/tile": 404, "/tile/": 404, "/issuer": 404, "/issuer/": 404,
		"/tile/0//000.p/1": 404, "/tile/0/000.p/1/": 404, "/tile/0/000%2ep/1": 404, "/tile/0/./000.p/1": 404, "/": 404, "": 404, "/.state/treeState": 404,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://log.example/", nil)
		u, err := r.URL.Parse("http://log.example" + "/")
		if err != nil {
			t.Fatal(err)
		}
		if u.Path = path; strings.Contains(path, "%") {
			u.Path, u.RawPath = strings.NewReplacer("%63", "c", "%2e", ".").Replace(path), path
		}
		r.URL = u
		w := httptest.NewRecorder()
		l.Handler().ServeHTTP(w, r)
		if w.Code != want || w.Header().Get("Location") != "" {
			t.Errorf("%q: %d, Location %q, want %d", path, w.Code, w.Header().Get("Location"), want)
		}
	}
	w := httptest.NewRecorder()
	l.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/checkpoint", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}
