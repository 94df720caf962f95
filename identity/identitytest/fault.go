package identitytest

import (
	"crypto/rsa"
	"net/http"
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

// Key is the key that the issuer signs with.
func (i *Issuer) Key() *rsa.PrivateKey { return i.key }

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
