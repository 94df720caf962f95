package service

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// The paths that Break and Requests take.
const (
	issuerDiscovery = "/.well-known/openid-configuration"
	issuerKeys      = "/keys"
)

// faultyIssuer is an issuer whose endpoints can be down, or never answer. It counts what
// it is asked.
type faultyIssuer struct {
	*identitytest.Issuer
	done chan struct{} // closed when the test ends

	mu       sync.Mutex
	broken   map[string]http.Handler
	requests map[string]int
}

// startIssuer starts one, in which nothing is broken yet.
func startIssuer(t testing.TB) *faultyIssuer {
	t.Helper()
	i := &faultyIssuer{done: make(chan struct{}), broken: make(map[string]http.Handler), requests: make(map[string]int)}
	i.Issuer = identitytest.New(t, i.wrap)
	t.Cleanup(func() { close(i.done) })
	return i
}

// wrap counts the requests, and gives the broken paths to what broke them.
func (i *faultyIssuer) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.requests[r.URL.Path]++
		broken := i.broken[r.URL.Path]
		i.mu.Unlock()
		if broken != nil {
			broken.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Break makes the handler answer for a path, such as issuerKeys, in the
// issuer's place. A nil handler mends it.
func (i *faultyIssuer) Break(path string, handler http.Handler) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if handler == nil {
		delete(i.broken, path)
		return
	}
	i.broken[path] = handler
}

// Requests is how often a path was asked for, broken or not.
func (i *faultyIssuer) Requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[path]
}

// TotalRequests is how often any path was asked for.
func (i *faultyIssuer) TotalRequests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	total := 0
	for _, n := range i.requests {
		total += n
	}
	return total
}

// failing answers with the status and no body worth reading.
func failing(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken by a test", code) })
}

// Hang takes the request and never answers, until the client or the test ends.
func (i *faultyIssuer) Hang() http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-i.done:
		}
	})
}

// The faults do what they say, and are counted.
func TestFaultsDoWhatTheySayAndAreCounted(t *testing.T) {
	t.Parallel()
	i := startIssuer(t)
	get := func(ctx context.Context) (*http.Response, string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.URL+issuerKeys, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		return response, string(body), err
	}
	i.Break(issuerKeys, failing(http.StatusBadGateway))
	if r, _, err := get(t.Context()); err != nil || r.StatusCode != http.StatusBadGateway {
		t.Errorf("status: %v, %v", r, err)
	}
	i.Break(issuerKeys, i.Hang())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	i.Break(issuerKeys, nil)
	if _, body, err := get(t.Context()); err != nil || !strings.Contains(body, keyID(t, i.Key().Public())) {
		t.Errorf("mended: %q, %v", body, err)
	}
	if i.Requests(issuerKeys) != 3 || i.Requests(issuerDiscovery) != 0 || i.TotalRequests() != 3 {
		t.Errorf("counted %d, %d, %d", i.Requests(issuerKeys), i.Requests(issuerDiscovery), i.TotalRequests())
	}
}

// With the keys down and none in memory, the verifier says so.
func TestVerifierSeesFaults(t *testing.T) {
	t.Parallel()
	i := startIssuer(t)
	i.Break(issuerKeys, failing(http.StatusServiceUnavailable))
	_, err := i.Verifier(t).Authenticate(t.Context(), i.Token(t, nil))
	if f := fault.From(err); f == nil || f.Reason != fault.IssuerUnavailable {
		t.Errorf("with the keys down: %v", err)
	}
	i.Break(issuerKeys, nil)
	if _, err := i.Verifier(t).Authenticate(t.Context(), i.Token(t, nil)); err != nil {
		t.Errorf("mended: %v", err)
	}
}
