package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// What the memory law says of reads is what they may take, and hardly more.
func TestMemoryLawHasTheReads(t *testing.T) {
	t.Parallel()
	if logReadBytes < read.MaxBytes || logReadBytes > read.MaxBytes+1<<20 {
		t.Errorf("the law has %d bytes for reads of logs, which may take %d", logReadBytes, read.MaxBytes)
	}
}

// Clients send no larger segments than fit into the receive buffer, on every listener.
func TestSegmentsAreSmall(t *testing.T) {
	t.Parallel()
	r := run(t)
	at := r.server.Addresses()
	for _, address := range []net.Addr{at.HTTP, at.GRPC, at.Metrics} {
		raw, err := connect(t, address).(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var size int
		var failed error
		if err := raw.Control(func(fd uintptr) { size, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		if size > maxSegment || size < maxSegment/2 {
			t.Errorf("%v: clients send segments of %d bytes, want %d at most", address, size, maxSegment)
		}
	}
}

// measured is a Server over TLS in a process of its own, which tells what it holds.
type measured struct {
	address string
	in      io.Writer
	out     *bufio.Scanner
}

// measuring is set for that process.
const measuring = "MAYFLY_MEASURING"

// serveMeasured is what it does: it says where it listens, and then, for each line that it
// reads, how many connections it has, and how many bytes.
func serveMeasured(t *testing.T) {
	t.Helper()
	files, _ := serverFiles(t, t.TempDir(), "ca.example.com")
	r := run(t, func(c *Config, o *Options) {
		c.TLS, o.Logger = files, nil
		c.Limits.HeaderTimeout, c.Limits.ReadTimeout, c.Limits.WriteTimeout = time.Minute, time.Minute, time.Minute
	})
	limit, ok := r.server.listeners.http.(*connectionLimit)
	if !ok {
		t.Fatal("no limit on connections")
	}
	fmt.Println(r.server.Addresses().HTTP)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what was pooled
		runtime.ReadMemStats(&m)
		limit.mu.Lock()
		fmt.Println(len(limit.tracked), m.HeapAlloc+m.StackInuse)
		limit.mu.Unlock()
	}
}

func startMeasured(t *testing.T) *measured {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^"+t.Name()+"$") // #nosec G204 -- itself
	cmd.Env, cmd.Stderr = append(os.Environ(), measuring+"=1"), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &measured{in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = in.Close()
		for m.out.Scan() { // what testing says in the end
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	m.address = m.line(t)
	return m
}

func (m *measured) line(t *testing.T) string {
	t.Helper()
	if !m.out.Scan() {
		t.Fatal("the process has ended")
	}
	return m.out.Text()
}

// bytes is what the process holds, once it has so many connections and doesn't change any more.
func (m *measured) bytes(t *testing.T, connections int) int {
	t.Helper()
	for before, same := 0, 0; ; {
		if _, err := fmt.Fprintln(m.in); err != nil {
			t.Fatal(err)
		}
		var there, all int
		if _, err := fmt.Sscan(m.line(t), &there, &all); err != nil {
			t.Fatal(err)
		}
		if same++; there != connections || max(all-before, before-all) > 64<<10 {
			same = 0
		}
		if before = all; same == 3 {
			return all
		}
		if err := wait.For(t.Context(), 20*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// client is one connection, which can be told to keep back the end of a record.
type client struct {
	net.Conn
	test *testing.T
	torn bool
}

func (c *client) Write(b []byte) (int, error) {
	if c.torn {
		_, err := c.Conn.Write(b[:len(b)-1])
		return len(b), err
	}
	return c.Conn.Write(b)
}

// must writes what is said in plain words or over TLS.
func (c *client) must(w io.Writer, text string) {
	c.test.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		c.test.Fatal(err)
	}
}

func (c *client) tls(protocol string) *tls.Conn {
	c.test.Helper()
	secured := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, DynamicRecordSizingDisabled: true}) // #nosec G402 -- who it is doesn't matter here
	if err := secured.HandshakeContext(c.test.Context()); err != nil {
		c.test.Fatal(err)
	}
	return secured
}

// hello begins the longest ClientHello that is read, and doesn't end it.
func (c *client) hello() {
	const whole, record = 1 << 16, 1 << 14
	body := append([]byte{1, 0, 0xff, 0xfc}, make([]byte, whole-4)...)
	for at := 0; at < whole; at += record {
		part := append([]byte{22, 3, 1, record >> 8, 0}, body[at:at+record]...)
		c.torn = at+record == whole
		c.must(c, string(part))
	}
}

// http1 makes a connection of HTTP/1.1 that one request has been answered by.
func (c *client) http1() *tls.Conn {
	c.test.Helper()
	secured := c.tls("http/1.1")
	c.must(secured, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(secured), nil)
	if err != nil {
		c.test.Fatal(err)
	}
	_ = text(c.test, response)
	return secured
}

// fields is a block of header fields: those of a request and more, which go into the
// tables, or secret ones alone, which don't.
func (c *client) fields(secret bool, more ...int) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	var all [][2]string
	if !secret {
		all = [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/healthz"}}
	}
	for n, length := range more {
		all = append(all, [2]string{fmt.Sprint("x-", n), strings.Repeat("X", length)})
	}
	for _, one := range all {
		if err := encoder.WriteField(hpack.HeaderField{Name: one[0], Value: one[1], Sensitive: secret}); err != nil {
			c.test.Fatal(err)
		}
	}
	return block.Bytes()
}

// http2 makes a connection of HTTP/2 that one request has been answered by.
func (c *client) http2() *http2.Framer {
	c.test.Helper()
	secured := c.tls("h2")
	c.must(secured, http2.ClientPreface)
	f := http2.NewFramer(secured, secured)
	if err := errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: c.fields(false, 1900, 1900), EndHeaders: true, EndStream: true,
	})); err != nil {
		c.test.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			c.test.Fatal(err)
		}
		if head := frame.Header(); head.StreamID == 1 && head.Flags.Has(http2.FlagDataEndStream) {
			return f
		}
	}
}

// head2 begins a head, and doesn't end a record in the middle of a frame of it.
func (c *client) head2() {
	f := c.http2()
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: append(c.fields(false), c.fields(true, 7000, 7000)...), EndStream: true})
	c.torn = true
	if err := errors.Join(err, f.WriteContinuation(3, false, c.fields(true, 15_900))); err != nil {
		c.test.Fatal(err)
	}
}

// What a connection over TLS takes of the process, measured: of quiet ones, and of those
// that begin what they don't end.
func TestTLSConnectionBytes(t *testing.T) {
	if os.Getenv(measuring) != "" {
		serveMeasured(t)
		return
	}
	t.Parallel()
	const connections = 100
	begun := connectionBytes + headCopies*DefaultConfig().Limits.HeaderBytes
	m := startMeasured(t)
	dial := func() *client {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", m.address)
		if err != nil {
			t.Fatal(err)
		}
		return &client{Conn: conn, test: t}
	}
	first := dial() // what only the first takes is no connection's
	defer func() { _ = first.Close() }()
	first.http2()
	for _, c := range []struct {
		name string
		open func(*client)
		most int
	}{
		{"silent", func(*client) {}, connectionBytes},
		{"HTTP/1.1, answered", func(c *client) { c.http1() }, connectionBytes},
		{"HTTP/2, answered", func(c *client) { c.http2() }, connectionBytes},
		{"the longest hello, unfinished", (*client).hello, begun},
		{"a head of HTTP/1.1, unfinished", func(c *client) {
			c.must(c.http1(), "GET / HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("a", 30_000))
		}, begun},
		{"a head of HTTP/2, unfinished", (*client).head2, begun},
	} {
		before, all := m.bytes(t, 1), [connections]*client{}
		for n := range all {
			all[n] = dial()
			c.open(all[n])
		}
		each := (m.bytes(t, 1+connections) - before) / connections
		t.Logf("%s: %d bytes", c.name, each)
		if each > c.most {
			t.Errorf("%s: a connection takes %d bytes, and the memory law says %d", c.name, each, c.most)
		}
		for _, conn := range all {
			_ = conn.Close()
		}
	}
}
