package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/server/internal/segment"
	"github.com/mayfly-ca/mayfly/server/internal/unixsocket"
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
	if l.certificates, err = loadCertificates(s.config.TLS, s.with.Logger); err != nil {
		return err
	}
	if l.certificates != nil {
		if err := s.with.Metrics.Register(l.certificates.expiry()); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	var taken []error
	open := func(opened net.Listener, address string, most int) net.Listener {
		if opened == nil && address == "" {
			return nil
		}
		var err error
		if opened == nil {
			opened, err = listenAt(ctx, address)
		}
		if err == nil {
			if err = segment.Limit(opened, maxSegment); err != nil {
				err = fmt.Errorf("%s: %w", opened.Addr(), err)
			}
		}
		if err != nil {
			taken = append(taken, fmt.Errorf("server: %w", err))
			return opened
		}
		return &connectionLimit{Listener: opened, most: most, evicted: s.metrics.evicted.Inc, tracked: map[*trackedConn]struct{}{}, by: map[netip.Prefix]int{}}
	}
	most := s.config.Limits.Connections
	l.http = open(s.with.HTTPListener, s.config.HTTPAddress, most)
	l.grpc = open(nil, s.config.GRPCAddress, most)
	l.metrics = open(nil, s.config.MetricsAddress, min(most, metricsConnections))
	if err := errors.Join(taken...); err != nil {
		return err
	}
	s.listeners = l
	return nil
}

// listenAt opens one address.
func listenAt(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := socketPath(address); ok {
		return unixsocket.Listen(ctx, path)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}

// onLoopback reports whether l is a port of loopback.
func onLoopback(l net.Listener) bool {
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

// maxSegment is the largest segment that clients may send, in bytes. Loopback's are larger
// than our receive buffer otherwise, and then TCP waits until all of it is free: calls
// that share a connection would wait for each other (RFC 9293 §3.8.6.2).
const maxSegment = 4 << 10

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

// buffered is a connection of which the kernel holds what isn't read, or not sent yet.
type buffered interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// Accept waits for the next connection, and makes room for it.
func (l *connectionLimit) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if c, ok := conn.(buffered); ok {
		if err := errors.Join(c.SetReadBuffer(receiveBuffer), c.SetWriteBuffer(sendBuffer)); err != nil {
			_ = conn.Close() // the client is gone
			return l.Accept()
		}
	}
	t := &trackedConn{Conn: conn, limit: l, opened: time.Now()}
	from, _ := parseHop(t.RemoteAddr().String())
	t.who = network(from)
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

// RemoteAddr is the client's. Of one that came by a Unix socket no more is known: it may
// give its end any name, that of a network address too.
func (t *trackedConn) RemoteAddr() net.Addr {
	if t.LocalAddr().Network() == "unix" {
		return &net.UnixAddr{Name: "unix", Net: "unix"}
	}
	return t.Conn.RemoteAddr()
}

// Close ends the connection, which is counted no more.
func (t *trackedConn) Close() error {
	t.limit.mu.Lock()
	t.limit.drop(t)
	t.limit.mu.Unlock()
	return t.Conn.Close()
}

// certificates is the listeners' certificate, read again when its files change.
type certificates struct {
	logger *slog.Logger

	mu      sync.Mutex
	files   TLSConfig
	current *tls.Certificate
	tried   [2]os.FileInfo // the versions of both files that were last read
}

// loadCertificates reads the pair that c names; nil without one.
func loadCertificates(c TLSConfig, logger *slog.Logger) (*certificates, error) {
	if !c.Enabled() {
		return nil, nil //nolint:nilnil // no TLS is a configuration, not a failure
	}
	t := &certificates{files: c, logger: logger}
	if _, err := t.look(); err != nil {
		return nil, fmt.Errorf("server: tls: %w", err)
	}
	return t, nil
}

// look reads the files if they aren't the ones that were read last, links followed.
func (t *certificates) look() (changed bool, err error) {
	cert, key := string(t.files.CertFile), string(t.files.KeyFile)
	var now [2]os.FileInfo
	for i, name := range []string{cert, key} {
		if now[i], err = os.Stat(name); err != nil {
			return false, err
		}
		before := t.tried[i]
		changed = changed || before == nil || !now[i].ModTime().Equal(before.ModTime()) || now[i].Size() != before.Size() || !os.SameFile(now[i], before)
	}
	if !changed {
		return false, nil
	}
	t.tried = now
	fresh, err := ReadCertificate(cert, key)
	if err == nil {
		t.current = fresh
	}
	return true, err
}

// ReadCertificate reads a certificate, with what follows it in its chain, and its key.
func ReadCertificate(cert, key string) (*tls.Certificate, error) {
	certs, err := os.ReadFile(cert) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	secret, err := secretfile.Read(key)
	if err != nil {
		return nil, err
	}
	chain, err := pemfile.CertificatesAmong(certs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cert, err)
	}
	private, err := pemfile.PrivateKey(secret, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if !pubkey.Equal(chain[0].PublicKey, private.Public()) {
		return nil, fmt.Errorf("%s: isn't the key of the first certificate in %s: name its key, or put the server's own certificate first", key, cert)
	}
	pair := &tls.Certificate{PrivateKey: private, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// get is the certificate of a handshake. Each one looks whether the files have
// changed, which costs two stats; a pair that doesn't fit leaves the old one in
// force, and is logged once.
func (t *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cert := slog.String("cert_file", string(t.files.CertFile))
	switch changed, err := t.look(); {
	case !changed: // nor while they are being replaced
	case err != nil:
		t.logger.LogAttrs(hello.Context(), slog.LevelError, "the new TLS certificate can't be used; the old one stays", cert, slog.Any("error", err))
	default:
		t.logger.LogAttrs(hello.Context(), slog.LevelInfo, "TLS certificate read again", cert)
	}
	return t.current, nil
}

// expiry shows when the certificate that is served ends.
func (t *certificates) expiry() prometheus.Collector {
	return metric.Read("mayfly_tls_expiry_timestamp_seconds", "When the TLS certificate of the API's listeners ends, in Unix seconds.", nil, func() float64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return float64(t.current.Leaf.NotAfter.Unix())
	})
}

// become serves what fresh, which nobody else uses, has read.
func (t *certificates) become(fresh *certificates) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files, t.current, t.tried = fresh.files, fresh.current, fresh.tried
}
