package main

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// TestHealthcheckReadsTheConfiguration: REST is asked where the configuration says
// that it is, over TLS by the certificate that is configured, whatever its name.
func TestHealthcheckReadsTheConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ready := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, "ok\nlog: warning: its disk fills\n")
	})
	own, other := catest.Server(t, "ca.example.com"), catest.Server(t, "ca.example.com")
	file := filepath.Join(dir, "tls.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	serve := func(network, address string, certificate *tls.Certificate) string {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(ready)
		s.Listener = l
		if certificate != nil {
			s.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12}
			s.StartTLS()
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
		return l.Addr().String()
	}
	port := func(address string) string {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	secured := server.TLSConfig{CertFile: setting.Path(file), KeyFile: "unread"}
	plain, socket := serve("tcp", "127.0.0.1:0", nil), filepath.Join(dir, "rest.sock")
	serve("unix", socket, nil)
	ours, strange := serve("tcp", "127.0.0.1:0", &own), serve("tcp", "127.0.0.1:0", &other)
	for name, tt := range map[string]struct {
		c    server.Config
		want string // in the error; "" is ready
	}{
		"an address":          {server.Config{HTTPAddress: plain}, ""},
		"all addresses":       {server.Config{HTTPAddress: "0.0.0.0:" + port(plain)}, ""},
		"no address":          {server.Config{HTTPAddress: ":" + port(plain)}, ""},
		"a name":              {server.Config{HTTPAddress: "localhost:" + port(plain)}, ""},
		"a Unix socket":       {server.Config{HTTPAddress: "unix:" + socket}, ""},
		"TLS":                 {server.Config{HTTPAddress: "0.0.0.0:" + port(ours), TLS: secured}, ""},
		"another certificate": {server.Config{HTTPAddress: strange, TLS: secured}, "another certificate than server.tls.cert_file"},
		"TLS that is off":     {server.Config{HTTPAddress: plain, TLS: secured}, "not ready"},
		"no certificate":      {server.Config{HTTPAddress: ours, TLS: server.TLSConfig{CertFile: "/nowhere", KeyFile: "unread"}}, "/nowhere"},
	} {
		transport := &http.Transport{DisableKeepAlives: true}
		url, err := healthURL(tt.c, transport)
		var lines []string
		if err == nil {
			lines, err = checkHealth(t.Context(), url, transport)
		}
		if warned := slices.Contains(lines, "log: warning: its disk fills"); warned != (tt.want == "") {
			t.Errorf("%s: %q", name, lines)
		}
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %q; want %q", name, err, lines, tt.want)
		}
	}
}
