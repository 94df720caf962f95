package external_test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestWordyLogIsCutShort: a log's own words don't flood our log, whichever line they are on, and
// what it asks our clients to wait is bounded.
func TestWordyLogIsCutShort(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{
		"status": "HTTP/1.1 503 " + strings.Repeat("a", 30<<10), "refusal": "HTTP/1.1 400 " + strings.Repeat("a", 30<<10),
		"no HTTP": strings.Repeat("a", 30<<10), "no code": "HTTP/1.1 " + strings.Repeat("a", 30<<10),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = bufio.NewReader(c).ReadString('}')
					_, _ = c.Write([]byte(first + "\r\nRetry-After: 2000000000\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
					_ = c.Close()
				}
			}()
			t.Cleanup(func() { _ = listener.Close(); <-done })
			f := open(t, nil, func(c *external.Config) { c.URL = "http://" + listener.Addr().String() })
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err = f.Submit(ctx, ctlogtest.NewCA(t).Chain(t))
			if err == nil {
				t.Fatal("no error")
			}
			if text := err.Error(); len(text) > 2<<10 {
				t.Errorf("an error of %d bytes: %.300s", len(text), text)
			}
			if wait := fault.From(err).RetryAfter; wait > time.Hour {
				t.Errorf("clients are told to wait %s", wait)
			}
		})
	}
}

// TestRedirectIsNotFollowed: neither a submission nor its token go where nobody configured. What
// a log refuses costs no connection.
func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	var elsewhere, connections atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusPermanentRedirect)
		_, _ = w.Write(make([]byte, 20<<10))
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	f := open(t, nil, func(c *external.Config) { c.URL = server.URL })
	ca := ctlogtest.NewCA(t)
	for range 5 {
		if _, err := f.Submit(t.Context(), ca.Chain(t)); err == nil || !strings.Contains(err.Error(), "308") {
			t.Errorf("got %v", err)
		}
		if err := f.CheckRoots(t.Context(), [][]byte{ca.Root.Raw}); err == nil || !strings.Contains(err.Error(), "308") {
			t.Errorf("got %v", err)
		}
	}
	if elsewhere.Load() != 0 || connections.Load() != 1 {
		t.Errorf("%d requests elsewhere, %d connections", elsewhere.Load(), connections.Load())
	}
}
