package external_test

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestProxyAndAddress: how a log is reached. Whatever the way, the request names the host of
// the log's URL, and TLS is verified for that name.
func TestProxyAndAddress(t *testing.T) {
	ca, key := ctlogtest.NewCA(t), ctlogtest.NewSigner(t)
	dir := t.TempDir()
	file := func(name string, content []byte) setting.Path {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return setting.Path(path)
	}
	var hosts, tunnels atomic.Value
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts.Store(r.Host)
		_ = json.NewEncoder(w).Encode(map[string]any{"certificates": [][]byte{ca.Root.Raw}})
	})
	secure, plain := httptest.NewTLSServer(answer), httptest.NewServer(answer)
	defer secure.Close()
	defer plain.Close()
	// A proxy that leads every name to the log, as one with its own resolver may.
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tunnels.Store(r.Method + " " + r.Host)
		if r.Method == http.MethodConnect {
			tunnel(t, w, secure.Listener.Addr().String())
			return
		}
		answer(w, r)
	}))
	defer proxy.Close()

	trust := file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}))
	secureAt, plainAt := secure.Listener.Addr().String(), plain.Listener.Addr().String()
	_, port, err := net.SplitHostPort(plainAt)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		c       external.Config
		host    string // that the log saw; empty: it can't be reached
		tunnel  string // that the proxy saw
		failure string
	}{
		// example.com is in httptest's certificate.
		"address and CA file":      {c: external.Config{URL: "https://example.com/2027", Address: secureAt, CAFile: trust}, host: "example.com"},
		"address, port in the URL": {c: external.Config{URL: "https://example.com:8443/2027", Address: secureAt, CAFile: trust}, host: "example.com:8443"},
		"without the CA file":      {c: external.Config{URL: "https://example.com/2027", Address: secureAt}, failure: "certificate"},
		"another name":             {c: external.Config{URL: "https://log.other.example/2027", Address: secureAt, CAFile: trust}, failure: "certificate"},
		"plain":                    {c: external.Config{URL: "http://log.invalid:" + port, Address: plainAt}, host: "log.invalid:" + port},
		"proxy":                    {c: external.Config{URL: "http://log.invalid", Proxy: proxy.URL}, host: "log.invalid", tunnel: "GET log.invalid"},
		"https proxy":              {c: external.Config{URL: "https://example.com", Proxy: proxy.URL, CAFile: trust}, host: "example.com", tunnel: "CONNECT example.com:443"},
		"no proxy":                 {c: external.Config{URL: "http://log.invalid", Proxy: "none"}, failure: "lookup log.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			hosts.Store("")
			tunnels.Store("")
			tt.c.KeyFile = file("key.pem", key.PEM(t))
			l, err := external.New(tt.c, external.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			err = l.CheckRoots(t.Context(), [][]byte{ca.Intermediate.Raw, ca.Root.Raw})
			if tt.failure != "" {
				if err == nil || !strings.Contains(err.Error(), tt.failure) {
					t.Errorf("got %v, want %q", err, tt.failure)
				}
				return
			}
			if err != nil || hosts.Load() != tt.host || tunnels.Load() != tt.tunnel {
				t.Errorf("%v; the log saw host %q, want %q; the proxy %q, want %q", err, hosts.Load(), tt.host, tunnels.Load(), tt.tunnel)
			}
		})
	}
}

// tunnel joins a client of a proxy with a server (RFC 9110 §9.3.6).
func tunnel(t *testing.T, w http.ResponseWriter, address string) {
	server, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_, err = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	if err != nil {
		t.Error(err)
	}
	go func() {
		_, _ = io.Copy(server, client) // either end may go first
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
	_ = client.Close()
}
