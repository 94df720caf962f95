package external_test

// Each test here is an incident with other logs, by name: what happened to CAs there
// must not happen to this one. Those of a log itself are in ctlog/embedded.

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"golang.org/x/sys/unix"
)

// How long the policy of these tests waits.
const (
	incidentStagger = 200 * time.Millisecond
	incidentTimeout = 2 * time.Second
)

// relay passes TCP connections on, and can freeze those that are there: they stay
// open, and nothing moves on them any more. That is what a firewall does that has
// forgotten a connection.
type relay struct {
	net.Listener
	to     string
	mu     sync.Mutex
	thaw   chan struct{} // closed when frozen connections may end
	frozen chan struct{} // closed to freeze the connections that are there
	conns  atomic.Int64
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, to: to, thaw: make(chan struct{}), frozen: make(chan struct{})}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		_ = l.Close()
		close(r.thaw)
		r.wg.Wait()
	})
	return r
}

func (r *relay) accept() {
	for {
		in, err := r.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		r.conns.Add(1)
		r.mu.Lock()
		frozen := r.frozen
		r.mu.Unlock()
		done := make(chan struct{}, 2)
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			r.wg.Go(func() {
				r.copy(pair[0], pair[1], frozen)
				done <- struct{}{}
			})
		}
		r.wg.Go(func() {
			select { // ends with the connection, or with the test
			case <-done:
			case <-r.thaw:
			}
			_, _ = in.Close(), out.Close()
		})
	}
}

// copy moves bytes until the connection ends. Once frozen it swallows them.
func (r *relay) copy(from, to net.Conn, frozen chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-frozen:
			if err == nil {
				continue
			}
			<-r.thaw // not even its end is passed on
			return
		default:
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// freeze stops what moves on the connections that are there; new ones work.
func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.frozen)
	r.frozen = make(chan struct{})
}

// A hanging HTTP/2 connection to one log froze the submissions of Boulder (3821).
// Here a log's established connection dies silently under load, as in a firewall
// that forgot it. Every submission gets the other log's SCT without delay, and the
// dead connection is noticed and replaced, though nothing ever closes it.
func TestSilentHTTP2ConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	f := open(t, nil, nil)
	behind, err := url.Parse(strings.TrimSuffix(f.url, "/2027"))
	if err != nil {
		t.Fatal(err)
	}
	front := httputil.NewSingleHostReverseProxy(behind)
	var second atomic.Int64 // requests over HTTP/2
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 {
			second.Add(1)
		}
		front.ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	between := newRelay(t, server.Listener.Addr().String())
	ca := f.ca
	hanging := newLog(t, f.key, "https://"+between.Addr().String()+"/2027", server.Certificate())
	other := healthy(t)
	p := incidentPolicy(t, hanging, other)
	who := func() ctlog.Description { return submitted(t, p, ca, hanging, other) }
	// The connection is made first: on a busy machine its handshake outlasts the stagger.
	if err := hanging.CheckRoots(t.Context(), [][]byte{ca.Root.Raw}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if who().ID != hanging.Description().ID {
			t.Fatal("the first log is well, and the second gave the SCT")
		}
	}
	if second.Load() != 4 || between.conns.Load() != 1 {
		t.Fatalf("%d requests over HTTP/2, %d connections; want 4 over one", second.Load(), between.conns.Load())
	}
	between.freeze()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if who().ID != other.Description().ID {
				t.Error("an SCT came over a connection that is dead")
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(30 * time.Second)
	for who().ID != hanging.Description().ID {
		if time.Now().After(deadline) {
			t.Fatal("after 30 s the dead connection is still used; the log behind it is well")
		}
	}
	if between.conns.Load() < 2 {
		t.Error("no new connection was made")
	}
}

// Logs blocked the addresses of a CA (2018). Here a log's network lets nothing
// through, in each way that networks do: the other log gives the SCT in time, the
// one that blocks is asked a bounded number of times and left alone after that, and
// alone it costs a refusal in time rather than a hanging service.
func TestBlockingNetworkCostsABoundedWait(t *testing.T) {
	t.Parallel()
	for name, block := range map[string]func(t *testing.T) (address string, asked func() int64){
		"silently dropped": dropping,
		"refused":          refusing,
		"hung up on":       hangingUp,
		"forbidden":        forbidding,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := ctlogtest.NewCA(t)
			address, asked := block(t)
			blocked := newLog(t, ctlogtest.NewSigner(t), "http://"+address+"/2027", nil)
			other := healthy(t)
			p := incidentPolicy(t, blocked, other)
			const submissions = 20
			for range submissions {
				if submitted(t, p, ca, blocked, other).ID != other.Description().ID {
					t.Fatal("an SCT of a log that can't be reached")
				}
			}
			// Within a stagger of 200 ms there is time for two attempts, 100 ms apart.
			if n := asked(); n > 2*submissions {
				t.Errorf("%d submissions made %d attempts", submissions, n)
			}
			if err := blocked.Ready(t.Context()); (err == nil) != (name == "forbidden") { // that one answers, at once
				t.Errorf("after %d submissions, is it left alone? %v", submissions, err)
			}
			alone := newLog(t, ctlogtest.NewSigner(t), "http://"+address+"/2027", nil)
			_, err := incidentPolicy(t, alone).Submit(t.Context(), ca.Chain(t))
			if f := fault.From(err); name != "forbidden" && (f.Reason != fault.LogUnavailable || f.RetryAfter <= 0) || err == nil {
				t.Errorf("alone: %v", err)
			}
		})
	}
}

// dropping is a port whose queue of connections is full: the kernel drops whatever
// knocks, as a firewall does.
func dropping(t *testing.T) (string, func() int64) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", bound.(*unix.SockaddrInet4).Port) //nolint:forcetypeassert // as it was bound
	for range 8 {
		c, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return address, func() int64 { return 0 } // nobody sees who knocks
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the kernel's queue doesn't fill")
	return "", nil
}

// refusing is a port where nobody listens.
func refusing(t *testing.T) (string, func() int64) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), func() int64 { return 0 }
}

// hangingUp ends each connection before an answer.
func hangingUp(t *testing.T) (string, func() int64) {
	t.Helper()
	return counting(t, func(http.ResponseWriter) { panic(http.ErrAbortHandler) })
}

// forbidding is a firewall with words.
func forbidding(t *testing.T) (string, func() int64) {
	t.Helper()
	return counting(t, func(w http.ResponseWriter) { http.Error(w, "your address is blocked", http.StatusForbidden) })
}

func counting(t *testing.T, answer func(http.ResponseWriter)) (string, func() int64) {
	t.Helper()
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		answer(w)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), asked.Load
}

// newLog is an external log at a URL; ca is the certificate that its server shows.
func newLog(t *testing.T, key *ctlogtest.Signer, url string, ca *x509.Certificate) *external.Log {
	t.Helper()
	dir := t.TempDir()
	c := external.Config{URL: url, KeyFile: setting.Path(filepath.Join(dir, "key.pem"))}
	if err := os.WriteFile(string(c.KeyFile), key.PEM(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if ca != nil {
		c.CAFile = setting.Path(filepath.Join(dir, "ca.pem"))
		if err := os.WriteFile(string(c.CAFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := external.New(c, external.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// healthy is a log that answers at once.
func healthy(t *testing.T) ctlog.Log {
	t.Helper()
	key := ctlogtest.NewSigner(t)
	spki := key.SPKI(t)
	return &ctlogtest.Honest{Signer: key, About: ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "https://healthy.example"}}
}

func incidentPolicy(t *testing.T, members ...ctlog.Log) *ctlog.Policy {
	t.Helper()
	p, err := ctlog.NewPolicy(members, ctlog.Options{Stagger: incidentStagger, Timeout: incidentTimeout})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// submitted submits a chain, and answers whose SCT came back.
func submitted(t *testing.T, p *ctlog.Policy, ca *ctlogtest.CA, members ...ctlog.Log) ctlog.Description {
	t.Helper()
	scts, err := p.Submit(t.Context(), ca.Chain(t))
	if err != nil {
		t.Errorf("Submit: %v", err)
		return ctlog.Description{}
	}
	for _, m := range members {
		if m.Description().ID == scts[0].LogID {
			return m.Description()
		}
	}
	t.Errorf("an SCT of a log that isn't there: %x", scts[0].LogID)
	return ctlog.Description{}
}
