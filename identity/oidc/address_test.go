package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

func TestSpecialAddressesAreRefused(t *testing.T) {
	t.Parallel()
	public := dialPolicy{}
	for _, a := range []string{
		"127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "0.1.2.3", "::", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1",
		"192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b:1::1",
		"2002:7f00:1::", "2001::1", "2001:db8::1", "100::1", "3fff::1", "5f00::1",
	} {
		if err := public.check(netip.MustParseAddr(a)); !errors.Is(err, errAddress) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if err := public.check(netip.Addr{}); err == nil {
		t.Error("no address")
	}
	for _, a := range []string{"8.8.8.8", "172.32.0.1", "100.63.255.255", "169.253.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"} {
		if err := public.check(netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	own, err := (&Config{AllowNetworks: []string{"10.20.0.0/16", "fd00:1::/32"}, AllowInsecureLoopback: true}).dialPolicy()
	if err != nil {
		t.Fatal(err)
	}
	for a, ok := range map[string]bool{
		"10.20.1.1": true, "::ffff:10.20.1.1": true, "64:ff9b::a14:101": true, "fd00:1::5": true, "127.0.0.1": true, "::1": true, "8.8.8.8": true,
		"10.21.0.1": false, "fd00:2::5": false, "169.254.169.254": false, "192.168.0.1": false,
	} {
		if err := own.check(netip.MustParseAddr(a)); (err == nil) != ok {
			t.Errorf("%s with its networks allowed: %v", a, err)
		}
	}
	for _, c := range [][2]string{{"udp4", "8.8.8.8:53"}, {"unix", "/run/x"}, {"tcp4", "host:80"}, {"tcp4", "127.0.0.1:80"}} {
		if err := public.control(t.Context(), c[0], c[1], nil); !errors.Is(err, errAddress) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// names is a name server whose answers a test chooses, each time anew.
func names(answer func(name string) [4]byte) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer func() { _ = server.Close() }()
			var size [2]byte
			for { // RFC 1035 §4.2.2: over a stream a message has its length before it
				if n, err := server.Read(size[:]); n != 2 || err != nil {
					return
				}
				query := make([]byte, int(size[0])<<8|int(size[1]))
				if n, err := server.Read(query); n != len(query) || err != nil {
					return
				}
				var m dnsmessage.Message
				if m.Unpack(query) != nil || len(m.Questions) != 1 {
					return
				}
				q := m.Questions[0]
				m.Response, m.Additionals = true, nil
				if q.Type == dnsmessage.TypeA {
					m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: answer(q.Name.String())}}}
				}
				reply, err := m.Pack()
				if err != nil {
					return
				}
				if _, err := server.Write(append([]byte{byte(len(reply) >> 8), byte(len(reply))}, reply...)); err != nil {
					return
				}
			}
		}()
		return client, nil
	}}
}

// counted is a listener that counts who connected.
type counted struct {
	net.Listener
	n atomic.Int32
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

func listen(t *testing.T, address string) *counted {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &counted{Listener: l}
}

// issuerAt serves an issuer over TLS at a listener, and gives its configuration
// under a name for which the certificate is good.
func issuerAt(t *testing.T, l net.Listener, jwks func(self string) string) Config {
	t.Helper()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	self := "https://example.com:" + port // a name in httptest's certificate
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // so that the keys need a dial of their own
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(0).Public(), KeyID: "k0"}}})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": self, "jwks_uri": jwks(self)})
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	c := ordinary()
	c.URL, c.CAFile = self, certificateFile(t, s)
	return c
}

// direct is the real transport of a verifier's first issuer.
func direct(t *testing.T, v *verifier) *transport {
	t.Helper()
	c, ok := v.keys[0].fetcher.client.Transport.(guardedTransport)
	if !ok {
		t.Fatalf("%T", v.keys[0].fetcher.client.Transport)
	}
	base, ok := c.next.(*transport)
	if !ok {
		t.Fatalf("%T", c.next)
	}
	base.proxy = func(*url.URL) (*url.URL, error) { return nil, nil } // whatever the environment has
	t.Cleanup(base.CloseIdleConnections)
	return base
}

func TestAddressesAreRefusedAtTheDial(t *testing.T) {
	t.Parallel()
	inside := func(t *testing.T) (l *counted, jwks string) {
		l = listen(t, "127.0.0.2:0")
		go func() { // whoever connects is counted, and cut off
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				_ = c.Close()
			}
		}()
		return l, l.Addr().String()
	}
	loopback := func(last byte) func(string) [4]byte { return func(string) [4]byte { return [4]byte{127, 0, 0, last} } }

	t.Run("discovery by a name that leads inside", func(t *testing.T) {
		t.Parallel()
		l := listen(t, "127.0.0.1:0")
		c := issuerAt(t, l, func(self string) string { return self + "/keys" })
		v, err := newVerifier([]Config{c}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		direct(t, v).dialer.Resolver = names(loopback(1))
		e := wantFault(t, v, "inside", token(t, map[string]any{"iss": c.URL}), fault.IssuerUnavailable)
		if !errors.Is(e.Cause, errAddress) || l.n.Load() != 0 {
			t.Errorf("%v after %d connections", e.Cause, l.n.Load())
		}
		if strings.Contains(e.Public, "127.0.0") {
			t.Errorf("the client reads %q", e.Public)
		}
	})
	t.Run("the same, allowed", func(t *testing.T) {
		t.Parallel()
		c := issuerAt(t, listen(t, "127.0.0.1:0"), func(self string) string { return self + "/keys" })
		c.AllowNetworks = []string{"127.0.0.1/32"}
		v, err := newVerifier([]Config{c}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		direct(t, v).dialer.Resolver = names(loopback(1))
		if _, err := v.Authenticate(t.Context(), token(t, map[string]any{"iss": c.URL})); err != nil {
			t.Error(err)
		}
	})
	t.Run("rebinding between discovery and keys", func(t *testing.T) {
		t.Parallel()
		l := listen(t, "127.0.0.1:0")
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		other := listen(t, "127.0.0.2:"+port)
		c := issuerAt(t, l, func(self string) string { return self + "/keys" })
		c.AllowNetworks = []string{"127.0.0.1/32"}
		v, err := newVerifier([]Config{c}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int32
		direct(t, v).dialer.Resolver = names(func(string) [4]byte { return [4]byte{127, 0, 0, byte(asked.Add(1))} })
		e := wantFault(t, v, "rebound", token(t, map[string]any{"iss": c.URL}), fault.IssuerUnavailable)
		if !errors.Is(e.Cause, errAddress) || l.n.Load() != 1 || other.n.Load() != 0 {
			t.Errorf("%v after %d and %d connections", e.Cause, l.n.Load(), other.n.Load())
		}
	})
	for name, listed := range map[string]bool{"keys inside, on a host that isn't listed": false, "keys inside, on a host that is listed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, host := inside(t)
			c := issuerAt(t, listen(t, "127.0.0.1:0"), func(string) string { return "https://" + host + "/keys" })
			c.AllowNetworks = []string{"127.0.0.1/32"}
			if listed {
				c.JWKSHosts = []string{host}
			}
			v, err := newVerifier([]Config{c}, Options{Now: atMoment})
			if err != nil {
				t.Fatal(err)
			}
			direct(t, v).dialer.Resolver = names(loopback(1))
			e := wantFault(t, v, name, token(t, map[string]any{"iss": c.URL}), fault.IssuerUnavailable)
			if errors.Is(e.Cause, errAddress) != listed || !listed && !strings.Contains(e.Cause.Error(), "jwks_hosts") || l.n.Load() != 0 {
				t.Errorf("%v after %d connections", e.Cause, l.n.Load())
			}
		})
	}
	t.Run("localhost, by the machine's own resolver", func(t *testing.T) {
		t.Parallel()
		l, host := inside(t)
		c := ordinary()
		_, port, _ := net.SplitHostPort(host)
		c.URL = "https://localhost:" + port
		v, err := newVerifier([]Config{c}, Options{Now: atMoment})
		if err != nil {
			t.Fatal(err)
		}
		direct(t, v)
		e := wantFault(t, v, "localhost", token(t, map[string]any{"iss": c.URL}), fault.IssuerUnavailable)
		if !errors.Is(e.Cause, errAddress) || l.n.Load() != 0 {
			t.Errorf("%v after %d connections", e.Cause, l.n.Load())
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "fe80::1%x", "8.8.8.8", "2606::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := netip.ParseAddr(s)
		if err != nil || (dialPolicy{}).check(a) != nil {
			return
		}
		// A second opinion on what passes.
		if u := a.Unmap(); !u.IsGlobalUnicast() || u.IsPrivate() || u.IsLoopback() || u.IsLinkLocalUnicast() || a.Zone() != "" {
			t.Fatalf("%s may be connected to", a)
		}
	})
}
