package server

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/setting"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	"github.com/mayfly-ca/mayfly/server/internal/unixsocket"
)

// onSockets serves REST and gRPC on Unix sockets, with a proxy before REST.
type onSockets struct {
	*running
	rest, grpc string
	direct     *http.Client // without the proxy
	proxy      *url.URL
}

func runOnSockets(t *testing.T, options ...rigOption) *onSockets {
	t.Helper()
	dir := t.TempDir()
	o := &onSockets{rest: filepath.Join(dir, "rest"), grpc: filepath.Join(dir, "grpc")}
	o.running = run(t, append([]rigOption{func(c *Config, _ *Options) {
		c.HTTPAddress, c.GRPCAddress = "unix:"+o.rest, "unix:"+o.grpc
		c.PublicURL, c.TrustedProxies = "https://ca.example.com", []string{"unix"}
	}}, options...)...)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", o.rest)
	}}
	o.direct = &http.Client{Transport: transport}
	front := &http.Server{Handler: &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = "http", "ca"
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		r.SetXForwarded()
	}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = front.Serve(l) }()
	t.Cleanup(func() {
		_ = front.Close()
		<-ended
		transport.CloseIdleConnections()
	})
	o.proxy = &url.URL{Scheme: "http", Host: l.Addr().String(), Path: v2Path}
	return o
}

// post asks for a certificate, and gives the status.
func post(t *testing.T, c *http.Client, url string, body []byte, forwarded ...string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header["X-Forwarded-For"] = forwarded
	response, err := c.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = text(t, response)
	return response.StatusCode
}

// Behind a proxy at a Unix socket, certificates are issued over REST and gRPC, and the
// record names the proxy's client.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	r := runOnSockets(t)
	if code := post(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, r.proxy.String(), asJSON(t, r.bodyV2(t)), "198.51.100.9"); code != http.StatusOK {
		t.Errorf("REST through the proxy: %d", code)
	}
	conn, err := grpc.NewClient("unix://"+r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "2001:db8::1")
	client := fulciov2.NewCAClient(conn)
	if _, err := client.CreateSigningCertificate(ctx, r.requestV2(t, r.issuer.Token(t, nil))); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	// Who is refused is on record: what the client says itself is before what its proxy says.
	bad := []byte("{")
	for _, forwarded := range [][]string{{"198.51.100.1"}, {"198.51.100.2, 198.51.100.1"}, {"nobody"}, nil} {
		if code := post(t, r.direct, "http://ca"+v2Path, bad, forwarded...); code != http.StatusBadRequest {
			t.Errorf("%v: %d", forwarded, code)
		}
	}
	if code := post(t, http.DefaultClient, r.proxy.String(), bad, "198.51.100.9"); code != http.StatusBadRequest {
		t.Errorf("through the proxy: %d", code)
	}
	var from []string
	for _, e := range r.audit.of(audit.Denied) {
		from = append(from, e.RemoteAddr)
	}
	if want := []string{"198.51.100.1", "198.51.100.1", "unix", "unix", "127.0.0.1"}; !slices.Equal(from, want) {
		t.Errorf("on record: %q, want %q", from, want)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection, which nobody asked for: %v", err)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	r.done <- nil
	for _, path := range []string{r.rest, r.grpc} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s after the end: %v", path, err)
		}
	}
}

// Clients that the proxy names have a limit each; all that it doesn't name have one
// together, and so has everybody where the proxy isn't trusted.
func TestLimitsBehindUnixSockets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		trusted []string
		want    []int
	}{
		"trusted":       {[]string{"unix"}, []int{400, 400, 429, 400, 429, 429}},
		"not trusted":   {nil, []int{400, 429, 429, 429, 429, 429}},
		"a network is":  {[]string{"0.0.0.0/0", "::/0"}, []int{400, 429, 429, 429, 429, 429}},
		"both of these": {[]string{"198.51.100.0/24", "unix"}, []int{400, 400, 429, 400, 429, 429}},
	} {
		r := runOnSockets(t, func(config *Config, _ *Options) {
			config.TrustedProxies = c.trusted
			config.RateLimits.PerAddress = Rate{Rate: 0.001, Burst: 1}
		})
		var got []int
		for _, forwarded := range [][]string{{"192.0.2.1"}, {"192.0.2.2"}, {"192.0.2.1"}, nil, nil, {"nobody"}} {
			got = append(got, post(t, r.direct, "http://ca"+v2Path, []byte("{"), forwarded...))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestSocketAddressesAreChecked(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.HTTPAddress, c.GRPCAddress, c.MetricsAddress = "unix:mayfly.sock", "unix:/run/"+string(bytes.Repeat([]byte("a"), 99)), "unix:/run/metrics"
	var f setting.Faults
	c.Check("server", &f)
	want := "server.http_address: \"unix:mayfly.sock\" is not unix: and an absolute path, such as unix:/run/mayfly/http.sock\n" +
		"server.grpc_address: \"" + c.GRPCAddress + "\" is too long: a socket's path has at most 103 bytes\n" +
		"server.metrics_address: \"unix:/run/metrics\" is a Unix socket, which Prometheus can't read: give host:port, such as 127.0.0.1:2112\n" +
		"server.public_url: required where http_address is a Unix socket: the URL at which the proxy in front serves REST, such as https://ca.example.com"
	if err := f.Err(); err == nil || err.Error() != want {
		t.Errorf("got:\n%v", err)
	}
	c = DefaultConfig()
	c.HTTPAddress, c.GRPCAddress, c.PublicURL = "unix:/run/s", "unix:/run/s", "https://ca.example.com"
	f = setting.Faults{}
	c.Check("server", &f)
	if err := f.Err(); err == nil || err.Error() != "server.grpc_address: is the address of http_address too; give each its own" {
		t.Errorf("got:\n%v", err)
	}
}

// A client that gives its end the name of an address isn't taken for it.
func TestClientHasNoAddress(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	socket, err := unixsocket.Listen(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	l := &connectionLimit{Listener: socket, most: 2, evicted: func() {}, tracked: map[*trackedConn]struct{}{}, by: map[netip.Prefix]int{}}
	client, err := net.DialUnix("unix", &net.UnixAddr{Name: "10.0.0.1:1", Net: "unix"}, &net.UnixAddr{Name: "s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if from := conn.RemoteAddr().String(); from != "unix" {
		t.Errorf("it comes from %q", from)
	}
	if err := errors.Join(conn.Close(), client.Close()); err != nil {
		t.Error(err)
	}
}
