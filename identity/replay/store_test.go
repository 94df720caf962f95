package replay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// redisServer is a real one, on a Unix socket of its own.
type redisServer struct {
	socket   string
	folder   string
	settings []string // lines of redis.conf
	process  *exec.Cmd
}

// startServer runs one until the test ends. It keeps what it acknowledged.
func startServer(t *testing.T, settings ...string) *redisServer {
	t.Helper()
	folder, err := os.MkdirTemp("", "redis") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	s := &redisServer{socket: filepath.Join(folder, "s"), folder: folder, settings: settings}
	s.start(t)
	t.Cleanup(func() {
		s.kill()
		os.RemoveAll(folder)
	})
	return s
}

func (s *redisServer) start(t *testing.T) {
	t.Helper()
	os.Remove(s.socket)
	settings := filepath.Join(s.folder, "conf")
	text := fmt.Sprintf("port 0\nunixsocket %s\ndir %s\nsave \"\"\nappendonly yes\nappendfsync always\n%s\n",
		s.socket, s.folder, strings.Join(s.settings, "\n"))
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.process = exec.Command("redis-server", settings)
	if err := s.process.Start(); err != nil {
		t.Fatalf("%v; on Debian, redis-server is a package", err)
	}
	until(t, func() bool {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			return false
		}
		defer c.Close()
		answer := make([]byte, 64)
		_, _ = io.WriteString(c, "PING\r\n")
		n, _ := c.Read(answer)
		return n > 0 && !strings.HasPrefix(string(answer), "-LOADING")
	})
}

func (s *redisServer) kill() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
}

// until returns when the condition holds, and fails the test after 20 seconds.
func until(t *testing.T, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it didn't come to that in 20 seconds")
		}
	}
}

func newStore(t *testing.T, change func(*Redis)) *Store {
	t.Helper()
	c := DefaultConfig()
	change(&c.Redis)
	var f setting.Faults
	c.Check("replay", &f)
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	s, err := New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *redisServer) store(t *testing.T) *Store {
	return newStore(t, func(r *Redis) { r.Address = s.socket })
}

func id(of string) [sha256.Size]byte { return sha256.Sum256([]byte(of)) }

func use(t *testing.T, s *Store, token string) bool {
	t.Helper()
	first, err := s.Use(t.Context(), id(token), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return first
}

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	f := fault.From(err)
	if f == nil || f.Reason != fault.ReplayUnavailable || f.Kind() != fault.Unavailable || f.RetryAfter <= 0 || f.Cause == nil {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(f.Public, f.Cause.Error()) {
		t.Errorf("the client reads the cause: %s", f.Public)
	}
}

func TestUseOnceAcrossReplicas(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	a, b := server.store(t), server.store(t)
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !use(t, a, "one") || use(t, a, "one") || use(t, b, "one") {
		t.Error("one: the first use alone is the first")
	}
	if !use(t, b, "two") || use(t, a, "two") {
		t.Error("two: the first use alone is the first")
	}
	other := newStore(t, func(r *Redis) { r.Address, r.KeyPrefix = server.socket, "other:" })
	if !use(t, other, "one") {
		t.Error("another CA's tokens count")
	}
}

func TestUseTogether(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	stores := []*Store{server.store(t), server.store(t)}
	var firsts atomic.Int32
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for n := range 64 {
		wg.Go(func() {
			<-begin
			first, err := stores[n%2].Use(t.Context(), id("one"), time.Now().Add(time.Hour))
			if err != nil {
				t.Error(err)
			}
			if first {
				firsts.Add(1)
			}
		})
	}
	close(begin)
	wg.Wait()
	if n := firsts.Load(); n != 1 {
		t.Errorf("%d of 64 were the first", n)
	}
}

func TestATokenIsForgottenAfterItsEnd(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	s := server.store(t)
	now := time.Now().Add(-30 * 24 * time.Hour) // the server's clock doesn't matter
	s.now = func() time.Time { return now }
	for left, want := range map[time.Duration]time.Duration{time.Hour: time.Hour + clocksDiffer, -time.Hour: clocksDiffer} {
		if _, err := s.Use(t.Context(), id(left.String()), now.Add(left)); err != nil {
			t.Fatal(err)
		}
		of := id(left.String())
		got, err := s.client.PTTL(t.Context(), s.prefix+hex.EncodeToString(of[:])).Result()
		if err != nil || got > want || got < want-time.Minute {
			t.Errorf("%v left: remembered for %v, want %v (%v)", left, got, want, err)
		}
	}
	s.longer = 0
	first, err := s.Use(t.Context(), id("short"), now.Add(20*time.Millisecond))
	if err != nil || !first {
		t.Fatal(first, err)
	}
	until(t, func() bool {
		first, err := s.Use(t.Context(), id("short"), now.Add(time.Hour))
		return err == nil && first
	})
}

func TestServerGoneAndBack(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	s := server.store(t)
	if !use(t, s, "before") {
		t.Fatal("not the first")
	}
	server.kill()
	_, err := s.Use(t.Context(), id("during"), time.Now().Add(time.Hour))
	wantUnavailable(t, err)
	wantUnavailable(t, s.Ready(t.Context()))
	server.start(t)
	if use(t, s, "before") {
		t.Error("a token that was used before is accepted again")
	}
	if !use(t, s, "during") {
		t.Error("a token that wasn't used isn't accepted")
	}
}

// TestSilentServer is one that takes connections and never answers, nor shakes hands.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			silent(t, newStore(t, func(r *Redis) { r.Address, r.TLS = l.Addr().String(), secure }))
		})
	}
}

func silent(t *testing.T, s *Store) {
	t.Helper()
	_, err := s.Use(t.Context(), id("one"), time.Now().Add(time.Hour))
	wantUnavailable(t, err)
	for want, end := range map[fault.Reason]func() (context.Context, context.CancelFunc){
		fault.DeadlineReached: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 20*time.Millisecond)
		},
		fault.ClientGone: func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx, cancel
		},
	} {
		ctx, cancel := end()
		_, err := s.Use(ctx, id("one"), time.Now().Add(time.Hour))
		cancel()
		if got := fault.From(err); got == nil || got.Reason != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestPermissions: the user that docs/running.md tells to make is enough, and
// what the server refuses is said to be unavailable.
func TestPermissions(t *testing.T) {
	t.Parallel()
	server := startServer(t, "user default off", "user mayfly on >correct ~mayfly:used:* -@all +set +get")
	file := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong")
	s := newStore(t, func(r *Redis) {
		r.Address, r.Username, r.Password = server.socket, "mayfly", setting.Secret{File: setting.Path(file)}
	})
	_, err := s.Use(t.Context(), id("one"), time.Now().Add(time.Hour))
	wantUnavailable(t, err)
	write("correct\n")
	if !use(t, s, "one") || use(t, s, "one") {
		t.Error("the first use alone is the first")
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	s.prefix = "elsewhere:"
	wantUnavailable(t, s.Ready(t.Context()))
}

// proxy is a TLS server before a Redis server that can lose connections.
type proxy struct {
	address, ca string
	server      *redisServer
	mute        atomic.Bool // break a connection when an answer to a SET comes

	mu    sync.Mutex
	conns []net.Conn
}

func startProxy(t *testing.T, server *redisServer) *proxy {
	t.Helper()
	certificate := catest.Server(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), ca: filepath.Join(t.TempDir(), "ca.pem"), server: server}
	if err := os.WriteFile(p.ca, catest.PEM(certificate.Leaf), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.lose()
		wg.Wait()
	})
	return p
}

// serve passes on what comes, and breaks the connection in place of one answer
// once mute is set.
func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	back, err := net.Dial("unix", p.server.socket)
	if err != nil {
		return
	}
	defer back.Close()
	p.mu.Lock()
	p.conns = append(p.conns, client, back)
	p.mu.Unlock()
	var asked atomic.Value
	asked.Store("")
	go func() {
		defer back.Close()
		b := make([]byte, 4096)
		for {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			asked.Store(string(b[:n]))
			if _, err := back.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 4096)
	for {
		n, err := back.Read(b)
		question, _ := asked.Load().(string)
		if err != nil || strings.Contains(strings.ToUpper(question), "\r\nSET\r\n") && p.mute.CompareAndSwap(true, false) {
			return
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

// lose breaks all connections.
func (p *proxy) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) store(t *testing.T) *Store {
	return newStore(t, func(r *Redis) { r.Address, r.CAFile = p.address, setting.Path(p.ca) })
}

func TestTLSAndBrokenConnections(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	p := startProxy(t, server)
	s := p.store(t)
	if !use(t, s, "one") || use(t, s, "one") {
		t.Error("the first use alone is the first")
	}
	p.lose() // what lay idle is broken
	if !use(t, s, "two") || use(t, s, "one") {
		t.Error("after the connections broke")
	}
	p.mute.Store(true) // the SET takes effect, its answer is lost
	if !use(t, s, "three") {
		t.Error("a token is taken for used because an answer was lost")
	}
	if p.mute.Load() {
		t.Error("no answer was lost")
	}
	if use(t, s, "three") {
		t.Error("after an answer was lost, the token is new for ever")
	}
	p.mute.Store(true)
	if use(t, s, "one") {
		t.Error("a used token is taken for new because an answer was lost")
	}

	distrusting := newStore(t, func(r *Redis) { r.Address = p.address })
	_, err := distrusting.Use(t.Context(), id("four"), time.Now().Add(time.Hour))
	wantUnavailable(t, err)
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

func TestNewReadsFiles(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, r := range map[string]Redis{
		"password: ":                 {Address: "redis:6379", Password: setting.Secret{File: "/nonexistent"}},
		"ca_file: open ":             {Address: "redis:6379", TLS: true, CAFile: "/nonexistent"},
		"holds no PEM block: a cert": {Address: "redis:6379", TLS: true, CAFile: setting.Path(notPEM)},
	} {
		if _, err := New(Config{Redis: r}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
