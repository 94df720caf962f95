package identitytest

import (
	"crypto/rsa"
	"net/http"
	"testing"
)

// Break makes the handler answer for a path, such as Keys or Discovery, in the
// issuer's place. A nil handler mends it.
func (i *Issuer) Break(path string, handler http.Handler) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if handler == nil {
		delete(i.broken, path)
		return
	}
	i.broken[path] = handler
}

// Requests is how often a path was asked for, broken or not.
func (i *Issuer) Requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[path]
}

// TotalRequests is how often any path was asked for.
func (i *Issuer) TotalRequests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	total := 0
	for _, n := range i.requests {
		total += n
	}
	return total
}

// Rotate makes the issuer sign with a new key; the old one stays published for
// devissuer's grace.
func (i *Issuer) Rotate(t testing.TB) {
	t.Helper()
	key, err := i.dev.Rotate()
	if err != nil {
		t.Fatalf("identitytest: %v", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = key
}

// Key is the key that the issuer signs with.
func (i *Issuer) Key() *rsa.PrivateKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.key
}

// Status answers with the status and no body worth reading.
func Status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken by a test", code) })
}

// Hang takes the request and never answers, until the client or the test ends.
func (i *Issuer) Hang() http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-i.done:
		}
	})
}

// Drip starts an answer that is JSON so far, and never ends it.
func (i *Issuer) Drip() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"keys":[`)) // the client may have gone
		_ = http.NewResponseController(w).Flush()
		i.Hang().ServeHTTP(w, r)
	})
}

// Huge answers with JSON white space, size bytes of it, and then an empty object.
func Huge(size int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		block := make([]byte, 32<<10)
		for n := range block {
			block[n] = ' '
		}
		for left := size; left > 0; left -= int64(len(block)) {
			if _, err := w.Write(block[:min(left, int64(len(block)))]); err != nil {
				return // the client has read enough
			}
		}
		_, _ = w.Write([]byte(`{}`))
	})
}

// Body answers with the text as JSON.
func Body(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(text)) // the client may have gone
	})
}
