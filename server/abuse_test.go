package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// hurried makes the time limits short enough to wait for.
func hurried(c *Config, _ *Options) {
	c.Limits.HeaderTimeout, c.Limits.ReadTimeout = 300*time.Millisecond, 600*time.Millisecond
}

// honest fails unless a request is answered while abuse goes on.
func honest(t *testing.T, r *running) {
	t.Helper()
	if code, body := get(t, r.url("/api/v2/trustBundle")); code != 200 {
		t.Errorf("an honest client got %d: %s", code, body)
	}
}

func connect(t *testing.T, address net.Addr) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestSlowHeadsAreCutOff(t *testing.T) {
	t.Parallel()
	r := run(t, hurried)
	for range 50 {
		conn := connect(t, r.server.Addresses().HTTP)
		if _, err := io.WriteString(conn, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := io.Copy(io.Discard, conn); err != nil && errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the connection was kept: %v", err)
			}
		}()
	}
	honest(t, r)
}

func TestSlowBodiesAreRefused(t *testing.T) {
	t.Parallel()
	r := run(t, hurried)
	conn := connect(t, r.server.Addresses().HTTP)
	if _, err := io.WriteString(conn, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	honest(t, r)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.refused(t, response, 400, fault.RequestMalformed)
}

func TestEndlessChunksAreRefused(t *testing.T) {
	t.Parallel()
	r := run(t)
	conn := connect(t, r.server.Addresses().HTTP)
	if _, err := io.WriteString(conn, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	chunk := []byte("1000\r\n" + strings.Repeat("a", 0x1000) + "\r\n")
	sent := 0
	for ; sent < 1<<30; sent += len(chunk) { // the server stops reading long before
		if _, err := conn.Write(chunk); err != nil {
			break
		}
		if sent > 2*r.server.config.Limits.BodyBytes {
			break
		}
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.refused(t, response, 413, fault.BodyTooLarge)
}

func TestIdleConnectionsGiveWay(t *testing.T) {
	t.Parallel()
	const kept = 32
	r := run(t, func(c *Config, _ *Options) { c.Limits.Connections = kept })
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		for range 10 * kept {
			connect(t, address)
		}
	}
	honest(t, r)
	limit := r.server.listeners.http.(*connectionLimit)
	limit.mu.Lock()
	defer limit.mu.Unlock()
	if n := len(limit.tracked); n > kept {
		t.Errorf("%d connections are kept", n)
	}
}

// flood is a client connection of HTTP/2 frames.
type flood struct {
	*http2.Framer
	conn net.Conn
	head bytes.Buffer
}

func newFlood(t *testing.T, address net.Addr) *flood {
	t.Helper()
	f := &flood{conn: connect(t, address)}
	f.Framer = http2.NewFramer(f.conn, f.conn)
	if _, err := io.WriteString(f.conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	encoder := hpack.NewEncoder(&f.head)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", v2Path}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestRapidResetLeavesOthersServed(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		f := newFlood(t, address)
		go func() { _, _ = io.Copy(io.Discard, f.conn) }()
		for id := uint32(1); id < 20_000; id += 2 {
			if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.head.Bytes(), EndHeaders: true}) != nil || f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				break // the server has had enough
			}
		}
		honest(t, r)
		if err := f.conn.Close(); err != nil {
			t.Error(err)
		}
	}
	r.untouched(t)
}

func TestContinuationFloodIsCutOff(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		f := newFlood(t, address)
		drained := make(chan struct{})
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, f.conn) }()
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.head.Bytes()}); err != nil {
			t.Fatal(err)
		}
		var filler bytes.Buffer
		if err := hpack.NewEncoder(&filler).WriteField(hpack.HeaderField{Name: "x-filler", Value: strings.Repeat("a", 8<<10), Sensitive: true}); err != nil {
			t.Fatal(err)
		}
		sent := 0
		for ; sent < 10_000; sent++ {
			if err := f.WriteContinuation(1, false, filler.Bytes()); err != nil {
				break
			}
		}
		if sent == 10_000 {
			t.Errorf("%v took %d CONTINUATION frames", address, sent)
		}
		honest(t, r)
		<-drained
	}
}

func TestClientsMakeNoSeries(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) { o.Logger = nil })
	series := func() int {
		t.Helper()
		families, err := r.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, f := range families {
			n += len(f.GetMetric())
		}
		return n
	}
	provoke := func(i int) {
		r.send(t, http.MethodGet, fmt.Sprintf("/random/%d", i), nil)
		r.send(t, fmt.Sprintf("M%d", i), "/api/v2/trustBundle", nil)
		r.send(t, http.MethodGet, fmt.Sprintf("/api/v2/trustBundle?x=%d", i), nil, "User-Agent", fmt.Sprint(i))
		r.postV2(t, fmt.Appendf(nil, `{"credentials":{"oidcIdentityToken":"eyJhbGciOiJSUzI1NiJ9.%d.c2ln"},"certificateSigningRequest":"QQ=="}`, i))
	}
	provoke(0)
	before := series()
	for i := range 5_000 { // four requests each
		provoke(i)
	}
	if after := series(); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}

// A request whose body is on its way when the service ends isn't told that it is too slow.
func TestDrainTellsWhoIsOnTheWay(t *testing.T) {
	t.Parallel()
	r := run(t)
	conn := connect(t, r.server.Addresses().HTTP)
	if _, err := io.WriteString(conn, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	r.await(t, func() bool { return r.held() == 1 })
	r.stop()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	readRefusal(t, response, 503, fault.ShuttingDown)
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	const held = 8
	arrived, release := make(chan struct{}, held), make(chan struct{})
	r := run(t)
	r.ca.before = func(ctx context.Context) error {
		arrived <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	body := asJSON(t, r.bodyV2(t))
	post := func() (*http.Response, error) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		return client.Post(r.url(v2Path), "application/json", bytes.NewReader(body))
	}
	var flight sync.WaitGroup
	for range held {
		flight.Go(func() {
			response, err := post()
			if err != nil {
				t.Error(err)
				return
			}
			chainOf(t, response)
		})
	}
	for range held {
		<-arrived
	}
	grpcClient := dial(t, r.server.Addresses().GRPC, nil)
	grpcClient.Connect()
	r.stop()
	for !r.server.inFlight.draining() {
		if code, _ := get(t, r.url("/healthz")); code != 200 { // also the wait
			t.Fatalf("healthz: %d", code)
		}
	}
	response, err := post()
	if err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	readRefusal(t, response, 503, fault.ShuttingDown)
	if err := grpcClient.Invoke(t.Context(), "/dev.sigstore.fulcio.v2.CA/GetTrustBundle", []byte{}, new([]byte), grpc.ForceCodec(rawCodec{})); status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC: %v", err)
	}
	if code, text := get(t, r.url("/readyz")); code != 503 || text != "shutdown: failing\n" {
		t.Errorf("readyz: %d %q", code, text)
	}
	close(release)
	flight.Wait()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	r.done <- nil
	if intents, issued := len(r.audit.of(audit.Intent)), len(r.audit.of(audit.Issued)); intents != held || issued != held {
		t.Errorf("%d intents, %d issued, want %d", intents, issued, held)
	}
}

func TestGraceCutsOffWhatRemains(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	r := run(t, func(c *Config, _ *Options) { c.ShutdownGrace = 50 * time.Millisecond })
	r.ca.before = func(ctx context.Context) error {
		arrived <- struct{}{}
		<-ctx.Done() // cut off with its connection
		return ctx.Err()
	}
	body := asJSON(t, r.bodyV2(t))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		response, err := http.Post(r.url(v2Path), "application/json", bytes.NewReader(body))
		if err == nil {
			_ = response.Body.Close()
			t.Errorf("status %d", response.StatusCode)
		}
	}()
	<-arrived
	r.stop()
	if err := <-r.done; !errors.Is(err, errGrace) {
		t.Errorf("%v", err)
	}
	r.done <- nil
	<-sent
	r.untouched(t)
}

func TestNoRouteIssuesWithoutAToken(t *testing.T) {
	t.Parallel()
	r := run(t, func(_ *Config, o *Options) {
		o.Mounts = map[string]http.Handler{"/ctlog/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "tile") })}
	})
	paths := []string{"/ctlog/checkpoint", "/ctlog/add-pre-chain", "/nowhere", "//api/v2/signingCert", "/api/v2/signingCert/"}
	for path := range r.server.routes.Load().exact {
		paths = append(paths, path)
	}
	complete := r.bodyV2(t)
	delete(complete, "credentials")
	issuing := map[string]bool{v2Path: true, v1Path: true}
	for _, path := range paths {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"} {
			for _, body := range []any{[]byte{}, complete, r.bodyV1(t)} {
				response := r.send(t, method, path, body, "X-HTTP-Method-Override", "POST")
				switch code := response.StatusCode; {
				case issuing[path] && method == "POST" && code != 401:
					t.Errorf("%s %s: %d", method, path, code)
				case code >= 500:
					t.Errorf("%s %s: %d %s", method, path, code, text(t, response))
				}
			}
		}
	}
	conn := dial(t, r.server.Addresses().GRPC, nil)
	for service, info := range r.server.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			if m.IsServerStream {
				continue
			}
			err := conn.Invoke(t.Context(), "/"+service+"/"+m.Name, []byte{}, new([]byte), grpc.ForceCodec(rawCodec{}))
			if strings.HasPrefix(m.Name, "Create") && status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s/%s: %v", service, m.Name, err)
			}
		}
	}
	r.untouched(t)
	if n := r.ca.calls.Load(); n != 0 {
		t.Errorf("the CA was called %d times", n)
	}
}

// TestAnnouncedBodiesTakeNoMemory announces bodies and sends none of them: what is
// announced alone must not take memory.
func TestAnnouncedBodiesTakeNoMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, announced := range []int64{int64(r.server.config.Limits.BodyBytes), 100, -1} {
		body := &silentBody{}
		request := httptest.NewRequest(http.MethodPost, "/api/v2/signingCert", body)
		request.ContentLength = announced
		out, request, _ := r.server.admit(httptest.NewRecorder(), request, createV2)
		if _, f := r.server.readBody(out, request, r.server.config.Limits.BodyBytes); f == nil || f.Reason != fault.RequestMalformed {
			t.Errorf("%d bytes announced: %v", announced, f)
		}
		if body.room > firstRoom+1 {
			t.Errorf("%d bytes announced, none sent: room for %d", announced, body.room)
		}
		out.leave(request)
	}
}

// silentBody ends without a byte, and remembers how much room it was offered.
type silentBody struct{ room int }

func (b *silentBody) Read(p []byte) (int, error) {
	b.room = max(b.room, len(p))
	return 0, io.ErrUnexpectedEOF
}
