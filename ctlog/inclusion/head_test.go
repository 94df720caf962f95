package inclusion_test

import (
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// TestReadHead: a log's head is read through the API that it has, and is worth
// something only under its key.
func TestReadHead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, b.submit(t, 3, true))
	b.settle(t) // all is published
	about := b.log.Description()
	stranger := about
	stranger.SPKI = ctlogtest.NewSigner(t).SPKI(t)
	stranger.ID = sha256.Sum256(stranger.SPKI)
	renamed := about
	renamed.URL = "https://another.example/2027"

	without := func(path string, code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, path) {
				http.Error(w, "no", code)
				return
			}
			b.log.Handler().ServeHTTP(w, r)
		})
	}
	for name, tt := range map[string]struct {
		log    remote.Log
		reads  http.Handler
		static bool
		fails  string
	}{
		"static-ct":          {remote.Log{Description: about}, b.log.Handler(), true, ""},
		"RFC 6962":           {remote.Log{Description: about}, without("/checkpoint", http.StatusNotFound), false, ""},
		"neither":            {remote.Log{Description: about}, without("/", http.StatusNotFound), false, "404"},
		"an error is no 404": {remote.Log{Description: about}, without("/checkpoint", http.StatusBadGateway), false, "502"},
		"another key":        {remote.Log{Description: stranger}, b.log.Handler(), false, "not signed by the log"},
		"another key's STH":  {remote.Log{Description: stranger}, without("/checkpoint", http.StatusNotFound), false, "not signed by the log"},
		"another name":       {remote.Log{Description: renamed}, b.log.Handler(), false, "not signed by the log"},
		"an STH has no name": {remote.Log{Description: renamed}, without("/checkpoint", http.StatusNotFound), false, ""},
	} {
		server := httptest.NewServer(tt.reads)
		tt.log.URL = server.URL
		head, err := remote.ReadHead(t.Context(), tt.log)
		server.Close()
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: %v, want %q", name, err, tt.fails)
			}
			continue
		}
		if err != nil || head.Size != 3 || head.Static != tt.static || time.Since(head.Signed()).Abs() > time.Minute {
			t.Errorf("%s: %+v, %v", name, head, err)
		}
	}
}
