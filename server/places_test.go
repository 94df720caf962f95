package server

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

var (
	hostile = netip.MustParseAddr("192.0.2.1")
	honest1 = netip.MustParseAddr("192.0.2.2")
)

// take enters a request whose end is noted in ended.
func take(t *testing.T, p *places, who netip.Addr, ended map[int]bool, n int) *place {
	t.Helper()
	held, f := p.enter(who, func(softly bool) { ended[n] = softly })
	if f != nil {
		t.Fatalf("request %d is turned away: %v", n, f)
	}
	return held
}

func TestWhoHoldsMostMakesRoom(t *testing.T) {
	t.Parallel()
	p, ended := newPlaces(4, 2), map[int]bool{}
	for n := range 3 {
		take(t, p, hostile, ended, n)
	}
	take(t, p, honest1, ended, 3)
	take(t, p, honest1, ended, 4)
	if !ended[0] || len(ended) != 1 {
		t.Fatalf("evicted: %v, want the oldest of who holds most", ended)
	}
	// Both hold two: whoever comes now replaces their own, not the other's.
	take(t, p, hostile, ended, 5)
	if !ended[1] || len(ended) != 2 {
		t.Fatalf("evicted: %v", ended)
	}
	// Two were turned away and are still there: the next isn't even told, and its
	// connection is cut.
	take(t, p, hostile, ended, 6)
	if softly, ok := ended[2]; softly || !ok {
		t.Fatalf("evicted: %v", ended)
	}
}

func TestWorkIsNotEvicted(t *testing.T) {
	t.Parallel()
	p, ended := newPlaces(2, 1), map[int]bool{}
	busy := take(t, p, hostile, ended, 0)
	busy.work(true)
	other := take(t, p, hostile, ended, 1)
	other.work(true)
	told, f := p.enter(honest1, nil)
	if f == nil || f.Reason != fault.Overloaded || f.RetryAfter <= 0 || told == nil {
		t.Fatalf("%v", f)
	}
	if dropped, f := p.enter(honest1, nil); f == nil || dropped != nil {
		t.Fatalf("beyond who can be told: %v", f)
	}
	told.leave()
	busy.leave()
	take(t, p, honest1, ended, 2).leave()
	other.leave()
	if len(ended) != 0 || len(p.by) != 0 || p.turned != 0 || p.held != 0 {
		t.Errorf("evicted %v; left %v, %d turned away", ended, p.by, p.turned)
	}
}

// withFewPlaces serves with n places for requests and for streams.
func withFewPlaces(t *testing.T, n int, options ...rigOption) *running {
	t.Helper()
	r := run(t, options...)
	r.server.places.set(n)
	r.server.streams.set(n)
	return r
}

func TestSlowBodiesGiveWay(t *testing.T) {
	t.Parallel()
	r := withFewPlaces(t, 8)
	var slow []net.Conn
	for range 8 {
		conn := connect(t, r.server.Addresses().HTTP)
		if _, err := io.WriteString(conn, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
		r.await(t, func() bool { return r.held() == len(slow) }) // so that the first is the oldest
	}
	honest(t, r)
	response, err := http.ReadResponse(bufio.NewReader(slow[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	readRefusal(t, response, 503, fault.Overloaded)
	r.untouched(t)
}

// Streams are blocked by clients that open no window; the log is read by nobody.
func TestBlockedAnswersGiveWay(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("tile"), 1<<20)
	r := withFewPlaces(t, 8, func(_ *Config, o *Options) {
		o.Mounts = map[string]http.Handler{"/ctlog/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(big) })}
	})
	for range 8 {
		conn := connect(t, r.server.Addresses().HTTP)
		if _, err := io.WriteString(conn, "GET /ctlog/tile HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	r.await(t, func() bool { return r.held() == 8 })
	honest(t, r)
	f := newBlocked(t, r.server.Addresses().HTTP)
	for range 8 {
		f.ask(t, http.MethodGet, "/ctlog/tile")
	}
	honest(t, r)
}

func TestAnswersNobodyReadsAreCutOff(t *testing.T) {
	t.Parallel()
	r := run(t, func(c *Config, _ *Options) { c.Limits.WriteTimeout = 100 * time.Millisecond })
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		f := newBlocked(t, address)
		for range 16 {
			f.ask(t, http.MethodPost, "/dev.sigstore.fulcio.v2.CA/GetTrustBundle", 0, 0, 0, 0, 0)
			if address == r.server.Addresses().HTTP {
				f.ask(t, http.MethodGet, "/api/v2/trustBundle")
			}
		}
		r.await(t, func() bool { return r.held() > 0 })
		r.await(t, func() bool { return r.held() == 0 })
	}
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	const most = 6
	r := withFewPlaces(t, 100, func(c *Config, _ *Options) { c.Limits.StreamTime = time.Minute })
	r.server.streams.set(most)
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		first := healthpb.NewHealthClient(dial(t, address, nil))
		watch := func(c healthpb.HealthClient) (healthpb.Health_WatchClient, error) {
			stream, err := c.Watch(t.Context(), &healthpb.HealthCheckRequest{})
			if err != nil {
				return nil, err
			}
			_, err = stream.Recv()
			return stream, err
		}
		var oldest healthpb.Health_WatchClient
		for n := range streamsAConnection {
			stream, err := watch(first)
			if err != nil {
				t.Fatalf("stream %d: %v", n, err)
			}
			if n == 0 {
				oldest = stream
			}
		}
		if _, err := watch(first); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "this connection") {
			t.Errorf("one more on this connection: %v", err)
		}
		for range most {
			if _, err := watch(healthpb.NewHealthClient(dial(t, address, nil))); err != nil {
				t.Errorf("on another connection: %v", err)
			}
		}
		for {
			_, err := oldest.Recv()
			if err == nil {
				continue
			}
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "open it again") {
				t.Errorf("the oldest ended with %v", err)
			}
			break
		}
		honest(t, r)
	}
}

func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	r := run(t, func(c *Config, _ *Options) { c.Limits.StreamTime = 200 * time.Millisecond })
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		conn := dial(t, address, nil)
		stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "open it again") {
			t.Errorf("watch: %v", err)
		}
		silent, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := silent.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("reflection: %v", err)
		}
	}
}

func TestReflectionIsForLoopback(t *testing.T) {
	t.Parallel()
	for _, on := range []bool{false, true} {
		r := run(t, func(c *Config, _ *Options) {
			c.HTTPAddress, c.GRPCAddress, c.Reflection = "0.0.0.0:0", "0.0.0.0:0", on
		})
		for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
			to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: address.(*net.TCPAddr).Port}
			stream, err := reflectionpb.NewServerReflectionClient(dial(t, to, nil)).ServerReflectionInfo(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
			want := codes.Unimplemented
			if on {
				want = codes.OK
			}
			if _, err := stream.Recv(); status.Code(err) != want {
				t.Errorf("reflection %v: %v", on, err)
			}
		}
	}
}

// One connection with blocked streams must not outlive the grace, nor must the
// end wait for it.
func TestBlockedStreamsDoNotHoldTheEnd(t *testing.T) {
	t.Parallel()
	for _, port := range []string{"http", "grpc"} {
		r := run(t, func(c *Config, _ *Options) { c.ShutdownGrace = 500 * time.Millisecond })
		address := r.server.Addresses().HTTP
		if port == "grpc" {
			address = r.server.Addresses().GRPC
		}
		f := newBlocked(t, address)
		for range 3 {
			f.ask(t, http.MethodPost, "/grpc.health.v1.Health/Watch", 0, 0, 0, 0, 0)
		}
		r.await(t, func() bool { return r.held() == 3 })
		r.stop()
		if err := <-r.done; err != nil {
			t.Errorf("%s: %v", port, err)
		}
		r.done <- nil
	}
}

// A frame's announced length takes no memory beyond the least frame of HTTP/2, and
// the windows are the least too.
func TestWindowsAreSmall(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		conn := connect(t, address)
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(conn, conn)
		if err := framer.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		settings, ok := frame.(*http2.SettingsFrame)
		if !ok {
			t.Fatalf("%v", frame)
		}
		for id, most := range map[http2.SettingID]uint32{http2.SettingMaxFrameSize: frameSize, http2.SettingInitialWindowSize: connectionWindow} {
			if v, ok := settings.Value(id); ok && v > most {
				t.Errorf("%v is %d", id, v)
			}
		}
	}
}

// held is how many requests have a place.
func (r *running) held() int {
	r.server.places.mu.Lock()
	defer r.server.places.mu.Unlock()
	return r.server.places.held
}

// await waits for a condition, as long as any test may take.
func (r *running) await(t *testing.T, met func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !met(); {
		if time.Now().After(end) {
			t.Fatal("it doesn't come to that")
		}
		<-time.After(time.Millisecond)
	}
}

// blocked is a client of HTTP/2 that opens no window for answers.
type blocked struct {
	*http2.Framer
	encoder *hpack.Encoder
	head    bytes.Buffer
	next    uint32
}

func newBlocked(t *testing.T, address net.Addr) *blocked {
	t.Helper()
	conn := connect(t, address)
	b := &blocked{Framer: http2.NewFramer(conn, conn), next: 1}
	b.encoder = hpack.NewEncoder(&b.head)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	return b
}

// ask sends a request, of gRPC where there is a message.
func (b *blocked) ask(t *testing.T, method, path string, message ...byte) {
	t.Helper()
	b.head.Reset()
	fields := [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "x"}, {":path", path}}
	if len(message) > 0 {
		fields = append(fields, [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"})
	}
	var err error
	for _, f := range fields {
		err = errors.Join(err, b.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	err = errors.Join(err, b.WriteHeaders(http2.HeadersFrameParam{StreamID: b.next, BlockFragment: b.head.Bytes(), EndHeaders: true, EndStream: len(message) == 0}))
	if len(message) > 0 {
		err = errors.Join(err, b.WriteData(b.next, true, message))
	}
	b.next += 2
	if err != nil {
		t.Fatal(fmt.Errorf("stream %d: %w", b.next, err))
	}
}
