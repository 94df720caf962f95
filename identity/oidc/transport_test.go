package oidc

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// pipes is a network inside a test's bubble of time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (p *pipes) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// TestAnswerThatNeverEndsIsCutOff is an issuer that keeps answering, and never ends: the
// deadline of the whole fetch ends it, and another issuer doesn't notice.
func TestAnswerThatNeverEndsIsCutOff(t *testing.T) {
	t.Parallel()
	rsaKeys()
	for _, slow := range []string{"/.well-known/openid-configuration", "/keys", "headers"} {
		synctest.Test(t, func(t *testing.T) {
			const self = "http://127.0.0.1"
			network := newPipes()
			server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if slow == "headers" {
					<-r.Context().Done()
					return
				}
				if r.URL.Path == slow {
					for i := 0; r.Context().Err() == nil; i++ {
						_, _ = w.Write([]byte(" "))
						_ = http.NewResponseController(w).Flush()
						select {
						case <-time.After(time.Second):
						case <-r.Context().Done():
						}
					}
					return
				}
				_ = json.NewEncoder(w).Encode(map[string]string{"issuer": self, "jwks_uri": self + "/keys"})
			})}
			served := make(chan error, 1)
			go func() { served <- server.Serve(network) }()
			c := ordinary()
			c.URL, c.AllowInsecureLoopback = self, true
			base := newHTTPTransport(nil)
			base.Dial = func(string, string) (net.Conn, error) { return network.dial() } //nolint:staticcheck // a pipe needs no context
			v, err := newVerifier([]Config{c}, Options{Transport: base})
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			tok := sign(t, key(0), plainHeader, encode(t, claims(map[string]any{"iss": self, "iat": now.Unix(), "nbf": nil, "exp": now.Add(time.Hour).Unix()})))
			e := wantFault(t, v, slow, tok, fault.IssuerUnavailable)
			if took := time.Since(now); took != fetchTimeout || e.RetryAfter <= 0 {
				t.Errorf("%s: %s, retry after %s; want %s", slow, took, e.RetryAfter, fetchTimeout)
			}
			v.closeIdle()
			_ = server.Close()
			<-served
		})
	}
}

func TestHugeAnswerIsCutOff(t *testing.T) {
	t.Parallel()
	var written atomic.Int64
	config, _ := secure(t, func(self string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			block := []byte(strings.Repeat(" ", 64<<10))
			for written.Load() < 300<<20 {
				n, err := w.Write(block)
				if written.Add(int64(n)); err != nil {
					return
				}
			}
		})
	})
	v, err := newVerifier([]Config{config}, Options{Now: atMoment})
	if err != nil {
		t.Fatal(err)
	}
	direct(t, v)
	e := wantFault(t, v, "300 MB", token(t, map[string]any{"iss": config.URL}), fault.IssuerUnavailable)
	if !strings.Contains(e.Cause.Error(), "longer than") {
		t.Errorf("cause %v", e.Cause)
	}
	v.closeIdle()
	if n := written.Load(); n > 32<<20 { // what the kernel and TLS hold beyond the limit
		t.Errorf("%d bytes were taken", n)
	}
}

// TestProxyFromTheEnvironment isn't parallel: it sets the environment.
func TestProxyFromTheEnvironment(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	l := listen(t, "127.0.0.1:0")
	upstream := l.Addr().String()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.Host)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			http.Error(w, "tunnels only", http.StatusBadRequest)
			return
		}
		up, err := net.Dial("tcp", upstream)
		if err != nil {
			http.Error(w, "no upstream", http.StatusBadGateway)
			return
		}
		down, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			_ = up.Close()
			return
		}
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
		_, _ = io.Copy(down, up)
		_ = down.Close()
	}))
	t.Cleanup(proxy.Close)
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	jwks := ""
	c := issuerAt(t, l, func(self string) string {
		if jwks != "" {
			return jwks
		}
		return self + "/keys"
	})
	taken := func() []string {
		mu.Lock()
		defer mu.Unlock()
		out := asked
		asked = nil
		return out
	}
	authenticate := func(c Config) error {
		v, err := newVerifier([]Config{c}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		defer v.closeIdle()
		_, err = v.Authenticate(t.Context(), token(t, map[string]any{"iss": c.URL}))
		return err
	}
	// The proxy is on a loopback address, and the issuer's name leads nowhere here.
	if err := authenticate(c); err != nil {
		t.Errorf("by the proxy: %v", fault.From(err).Cause)
	}
	host := strings.TrimPrefix(c.URL, "https://")
	if want := []string{"CONNECT " + host, "CONNECT " + host}; !slices.Equal(taken(), want) {
		t.Errorf("the proxy was not asked for %q", want)
	}

	// An address that is spelled out is judged before the proxy is asked.
	jwks = "https://169.254.169.254/keys"
	c.JWKSHosts = []string{"169.254.169.254"}
	if err := authenticate(c); err == nil || !strings.Contains(fault.From(err).Cause.Error(), "allow_networks") {
		t.Errorf("metadata by the proxy: %v", err)
	}
	if got := taken(); slices.Contains(got, "CONNECT 169.254.169.254:443") {
		t.Errorf("the proxy was asked for %q", got)
	}

	// NO_PROXY leads around it, and then the name is judged by its address.
	t.Setenv("NO_PROXY", "example.com")
	v, err := newVerifier([]Config{c}, Options{Now: atMoment})
	if err != nil {
		t.Fatal(err)
	}
	base, ok := v.keys[0].fetcher.client.Transport.(guardedTransport).next.(*transport)
	if !ok {
		t.Fatal("not our transport")
	}
	base.dialer.Resolver = names(func(string) [4]byte { return [4]byte{127, 0, 0, 1} })
	wantFault(t, v, "around the proxy", token(t, map[string]any{"iss": c.URL}), fault.IssuerUnavailable)
	if got := taken(); len(got) != 0 {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// later is a clock that a test moves.
func later() (now func() time.Time, move func(time.Duration)) {
	var offset atomic.Int64
	return func() time.Time { return moment.Add(time.Duration(offset.Load())) }, func(d time.Duration) { offset.Add(int64(d)) }
}

func write(t *testing.T, path setting.Path, content string) {
	t.Helper()
	if err := os.WriteFile(string(path)+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(string(path)+".new", string(path)); err != nil { // at once, as an operator's tool does it
		t.Fatal(err)
	}
}

func TestCertificateAuthoritiesAreReadAgain(t *testing.T) {
	t.Parallel()
	config, _ := secure(t, func(self string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keys" {
				_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0"}}})
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": self, "jwks_uri": self + "/keys"})
		})
	})
	good, err := os.ReadFile(string(config.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	now, move := later()
	v, err := newVerifier([]Config{config}, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	direct(t, v)
	tok := token(t, map[string]any{"iss": config.URL})
	write(t, config.CAFile, "no certificates")
	if e := wantFault(t, v, "a broken bundle", tok, fault.IssuerUnavailable); !strings.Contains(e.Cause.Error(), "holds no PEM block: a certificate") {
		t.Errorf("cause %v", e.Cause)
	}
	write(t, config.CAFile, string(good))
	move(failureGap)
	if _, err := v.Authenticate(t.Context(), tok); err != nil {
		t.Errorf("the bundle is whole again: %v", fault.From(err).Cause)
	}
	if err := os.Remove(string(config.CAFile)); err != nil {
		t.Fatal(err)
	}
	move(failureGap)
	wantFault(t, v, "a bundle that is gone", sign(t, key(0), `{"alg":"RS256","kid":"new"}`, encode(t, claims(map[string]any{"iss": config.URL}))), fault.IssuerUnavailable)
	if _, err := v.Authenticate(t.Context(), tok); err != nil {
		t.Errorf("keys that are here: %v", err)
	}
}

// TestBearerTokenStaysHome: the token goes to the issuer's own host, never
// to where its keys are, or to where a redirect leads.
func TestBearerTokenStaysHome(t *testing.T) {
	t.Parallel()
	w := new(world)
	a := found(w, "https://issuer.example", "issuer.example")
	var mu sync.Mutex
	sent := map[string][]string{}
	var jwks, redirect string
	spy := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			sent[r.URL.Host] = append(sent[r.URL.Host], r.Header.Get("Authorization"))
			switch {
			case redirect != "" && r.URL.Path == "/keys":
				http.Redirect(rw, r, redirect, http.StatusFound)
			case jwks != "" && strings.HasPrefix(r.URL.Path, "/.well-known"):
				_ = json.NewEncoder(rw).Encode(map[string]string{"issuer": a.url, "jwks_uri": jwks})
			default:
				next.ServeHTTP(rw, r)
			}
		})
	}
	w.serve("issuer.example", spy(a))
	w.serve("keys.example", spy(a))
	w.serve("issuer.example:8443", spy(a))
	c := ordinary()
	c.BearerTokenFile = setting.Path(filepath.Join(t.TempDir(), "token"))
	c.JWKSHosts = []string{"keys.example", "issuer.example:8443"}
	try := func() error {
		sent = map[string][]string{}
		v, err := newVerifier([]Config{c}, Options{Now: atMoment, Transport: w})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Authenticate(t.Context(), token(t, nil))
		return err
	}
	write(t, c.BearerTokenFile, "one\n")
	if err := try(); err != nil || !slices.Equal(sent["issuer.example"], []string{"Bearer one", "Bearer one"}) {
		t.Errorf("%v, %q", err, sent)
	}
	write(t, c.BearerTokenFile, "two")
	for _, jwks = range []string{"https://keys.example/keys", "https://issuer.example:8443/keys"} {
		u, err := url.Parse(jwks)
		if err != nil {
			t.Fatal(err)
		}
		if err := try(); err != nil || !slices.Equal(sent["issuer.example"], []string{"Bearer two"}) || !slices.Equal(sent[u.Host], []string{""}) {
			t.Errorf("%s: %v, %q", jwks, err, sent)
		}
	}
	jwks = ""
	for _, redirect = range []string{"https://keys.example/keys", "https://issuer.example:8443/keys", "http://issuer.example/keys"} {
		if err := try(); err == nil || len(sent["keys.example"])+len(sent["issuer.example:8443"]) > 0 || len(sent["issuer.example"]) != 2 {
			t.Errorf("redirect to %s: %v, %q", redirect, err, sent)
		}
	}
	redirect = ""
	for _, bad := range []string{"", " \n", "a b", "a\r\nHost: evil", "é", strings.Repeat("a", maxBearer+1)} {
		write(t, c.BearerTokenFile, bad)
		if err := try(); err == nil || len(sent) != 0 {
			t.Errorf("%.20q: %v, %q", bad, err, sent)
		} else if bad != "" && len(bad) > 3 && strings.Contains(fault.From(err).Error(), bad) {
			t.Errorf("the error holds the token: %v", err)
		}
	}
	if err := os.Remove(string(c.BearerTokenFile)); err != nil {
		t.Fatal(err)
	}
	if err := try(); err == nil || len(sent) != 0 {
		t.Errorf("no file: %v, %q", err, sent)
	}
}
