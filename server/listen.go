package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// listeners are the open addresses between Listen and the end of Serve.
type listeners struct {
	http, grpc, metrics net.Listener
	certificates        *certificates
}

// Listen opens the configured addresses and reads the TLS certificate. On an
// error, which names every address that is taken, nothing stays open. Close ends what Serve is never called for.
func (s *Server) Listen(ctx context.Context) (err error) {
	var l listeners
	if l.certificates, err = loadCertificates(s.config.TLS, s.logger); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	var taken []error
	for _, open := range []struct {
		address string
		bound   net.Listener
		into    *net.Listener
		most    int
	}{
		{s.config.HTTPAddress, s.bound, &l.http, s.config.Limits.Connections},
		{s.config.GRPCAddress, nil, &l.grpc, s.config.Limits.Connections},
		{s.config.MetricsAddress, nil, &l.metrics, min(s.config.Limits.Connections, metricsConnections)},
	} {
		opened := open.bound
		if opened == nil && open.address == "" {
			continue
		}
		if opened == nil {
			if opened, err = new(net.ListenConfig).Listen(ctx, "tcp", open.address); err != nil {
				taken = append(taken, fmt.Errorf("server: %w", err))
				continue
			}
		}
		*open.into = newConnectionLimit(opened, open.most, s.metrics.evicted.Inc)
	}
	if err := errors.Join(taken...); err != nil {
		return err
	}
	s.listeners = l
	if l.certificates == nil && (!onLoopback(l.http) || !onLoopback(l.grpc)) {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "the API speaks plain text beyond loopback: identity tokens can be read on the way, unless a proxy in front ends TLS; set server.tls")
	}
	return nil
}

// onLoopback reports whether l, if there is one, is for this machine alone.
func onLoopback(l net.Listener) bool {
	if l == nil {
		return true
	}
	a, ok := l.Addr().(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

func (l *listeners) close() {
	for _, one := range []net.Listener{l.http, l.grpc, l.metrics} {
		if one != nil {
			_ = one.Close() // nothing was accepted: there is nothing to lose
		}
	}
}

// Close ends a Server that listens but isn't being served.
func (s *Server) Close() { s.listeners.close() }

// Addresses are where the Server listens, once Listen has returned. A listener
// that the configuration leaves out is nil.
type Addresses struct{ HTTP, GRPC, Metrics net.Addr }

// Addresses are where the Server listens.
func (s *Server) Addresses() Addresses {
	address := func(l net.Listener) net.Addr {
		if l == nil {
			return nil
		}
		return l.Addr()
	}
	return Addresses{address(s.listeners.http), address(s.listeners.grpc), address(s.listeners.metrics)}
}

// How much the kernel keeps for a connection, in bytes each way. Linux doubles it,
// for what it needs beside the data (socket(7), SO_SNDBUF).
const receiveBuffer, sendBuffer = 16 << 10, 32 << 10

// connectionLimit is a listener that keeps at most so many connections. When one more
// comes, the address that has most of them loses the one that has been quiet longest,
// those that never sent a byte first: somebody who only opens connections closes
// their own, and honest clients still get in.
type connectionLimit struct {
	net.Listener
	most    int
	evicted func()

	mu      sync.Mutex
	tracked map[*trackedConn]struct{}
	by      map[netip.Prefix]int // how many of tracked, by address
}

// trackedConn is a connection that a connectionLimit counts.
type trackedConn struct {
	net.Conn
	limit  *connectionLimit
	who    netip.Prefix
	opened time.Time
	// active is when it last sent or was sent something, in nanoseconds since
	// the Unix epoch; 0 when it never sent anything.
	active atomic.Int64
}

func newConnectionLimit(l net.Listener, most int, evicted func()) *connectionLimit {
	return &connectionLimit{Listener: l, most: most, evicted: evicted, tracked: map[*trackedConn]struct{}{}, by: map[netip.Prefix]int{}}
}

// Accept waits for the next connection, and makes room for it.
func (l *connectionLimit) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok { // what isn't read, or not sent yet, is in the kernel's memory
		if err := errors.Join(tcp.SetReadBuffer(receiveBuffer), tcp.SetWriteBuffer(sendBuffer)); err != nil {
			_ = conn.Close() // the client is gone
			return l.Accept()
		}
	}
	from, _ := parseHop(conn.RemoteAddr().String())
	t := &trackedConn{Conn: conn, limit: l, who: network(from), opened: time.Now()}
	if out := l.track(t); out != nil {
		l.evicted()
		_ = out.Close() // its owner reads the error
	}
	return t, nil
}

// track counts t, and returns the connection that has to go for it, or nil.
func (l *connectionLimit) track(t *trackedConn) *trackedConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out *trackedConn
	if len(l.tracked) >= l.most {
		for other := range l.tracked {
			if n := l.by[other.who]; out == nil || n > l.by[out.who] || n == l.by[out.who] && other.quieter(out) {
				out = other
			}
		}
		l.drop(out)
	}
	l.tracked[t] = struct{}{}
	l.by[t.who]++
	return out
}

// drop counts t no more.
func (l *connectionLimit) drop(t *trackedConn) {
	if _, ok := l.tracked[t]; !ok {
		return
	}
	delete(l.tracked, t)
	if l.by[t.who]--; l.by[t.who] == 0 {
		delete(l.by, t.who)
	}
}

// quieter reports whether t should go before other.
func (t *trackedConn) quieter(other *trackedConn) bool {
	a, b := t.active.Load(), other.active.Load()
	if a == 0 && b == 0 {
		return t.opened.Before(other.opened)
	}
	return a < b
}

// Read notes that the client is there.
func (t *trackedConn) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.note(n)
	return n, err
}

// Write notes that the client is being answered.
func (t *trackedConn) Write(b []byte) (int, error) {
	n, err := t.Conn.Write(b)
	t.note(n)
	return n, err
}

func (t *trackedConn) note(n int) {
	if n > 0 {
		t.active.Store(time.Now().UnixNano())
	}
}

// Close ends the connection, which is counted no more.
func (t *trackedConn) Close() error {
	t.limit.mu.Lock()
	t.limit.drop(t)
	t.limit.mu.Unlock()
	return t.Conn.Close()
}
