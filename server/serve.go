package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// listeners are the open addresses between Listen and the end of Serve.
type listeners struct {
	http, grpc, metrics net.Listener
	certificates        *certificates
}

var (
	errPanic        = errors.New("panic")
	errNotListening = errors.New("server: Serve before Listen")
	errGrace        = errors.New("server: requests were still in flight when the grace period ended, and were cut off")
)

// Listen opens the configured addresses and reads the TLS certificate. On an
// error nothing stays open. Close ends what Serve is never called for.
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
	for _, open := range []struct {
		address string
		bound   net.Listener
		into    *net.Listener
	}{
		{s.config.HTTPAddress, s.bound, &l.http},
		{s.config.GRPCAddress, nil, &l.grpc},
		{s.config.MetricsAddress, nil, &l.metrics},
	} {
		opened := open.bound
		if opened == nil && open.address == "" {
			continue
		}
		if opened == nil {
			if opened, err = new(net.ListenConfig).Listen(ctx, "tcp", open.address); err != nil {
				return fmt.Errorf("server: %w", err)
			}
		}
		*open.into = newCrowd(opened, s.config.Limits.Connections, s.metrics.evicted.Inc)
	}
	s.listeners = l
	if l.certificates == nil && (!loopback(l.http) || !loopback(l.grpc)) {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "the API speaks plain text beyond loopback: identity tokens can be read on the way, unless a proxy in front ends TLS; set server.tls")
	}
	return nil
}

// loopback reports whether l, if there is one, is for this machine alone.
func loopback(l net.Listener) bool {
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

// Serve answers requests until ctx ends, and then drains: readiness is false and
// new requests get 503 from that moment; listeners close when the delay has
// passed and nothing is in flight, or the grace period has ended, which cuts off
// what remains and is an error. Serve may be called once, after Listen.
func (s *Server) Serve(ctx context.Context) error {
	if s.listeners.http == nil {
		return errNotListening
	}
	// What is in flight outlives ctx, to be finished.
	lasting := context.WithoutCancel(ctx)
	api, metrics := s.newHTTP(lasting), s.newMetricsHTTP(lasting)
	if t := s.listeners.certificates; t != nil {
		s.grpcNative = s.newGRPC(transport(t)...)
	}
	group, failed := errgroup.WithContext(ctx)
	group.Go(func() error { return ended(api.Serve(s.wrapped())) })
	if s.listeners.grpc != nil {
		group.Go(func() error { return s.grpcNative.Serve(s.listeners.grpc) })
	}
	if s.listeners.metrics != nil {
		group.Go(func() error { return ended(metrics.Serve(s.listeners.metrics)) })
	}
	group.Go(func() error { s.ready.watch(failed); return nil })
	group.Go(func() error {
		<-failed.Done()
		return s.drain(lasting, api, metrics)
	})
	return group.Wait()
}

// wrapped is the REST listener, with TLS when there is a certificate.
func (s *Server) wrapped() net.Listener {
	if t := s.listeners.certificates; t != nil {
		return tls.NewListener(s.listeners.http, t.tlsConfig())
	}
	return s.listeners.http
}

// ended is err, but nil for a server that was told to stop.
func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// newHTTP makes the server of the REST port.
func (s *Server) newHTTP(ctx context.Context) *http.Server {
	l := s.config.Limits
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(s.listeners.certificates == nil)
	return &http.Server{
		Handler:           s.Handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		WriteTimeout:      l.ReadTimeout + s.config.RequestTimeout + l.HeaderTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.HeaderBytes,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: l.Streams, PingTimeout: keepaliveWait, SendPingTimeout: keepaliveTime},
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

// newMetricsHTTP makes the server of /metrics.
func (s *Server) newMetricsHTTP(ctx context.Context) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Registry: s.registry}))
	if s.config.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return &http.Server{
		Handler:           mux,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: s.config.Limits.HeaderTimeout,
		ReadTimeout:       s.config.Limits.ReadTimeout,
		WriteTimeout:      time.Minute,
		IdleTimeout:       s.config.Limits.IdleTimeout,
		MaxHeaderBytes:    s.config.Limits.HeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

// flushTime is how long answers that are already made may take to be sent.
const flushTime = time.Second

// drain ends both edges within the grace period.
func (s *Server) drain(ctx context.Context, api, metrics *http.Server) error {
	s.logger.LogAttrs(ctx, slog.LevelInfo, "shutting down: new requests are refused, those in flight finish",
		slog.Duration("grace", s.config.ShutdownGrace))
	idle := s.gate.close()
	s.ready.shutdown()
	grace, cancel := context.WithTimeout(ctx, s.config.ShutdownDelay+s.config.ShutdownGrace)
	defer cancel()
	err := s.awaitIdle(grace, idle)
	// Streams such as health watches have no end of their own: once no request
	// is in flight and the last answers are out, they are closed.
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		flush, cancel := context.WithTimeout(grace, flushTime)
		defer cancel()
		stopGRPC(flush, s.grpcNative)
	}()
	s.grpcShared.Stop()
	if shutdownErr := api.Shutdown(grace); shutdownErr != nil {
		err = errors.Join(err, ignoreClosed(api.Close()))
	}
	<-stopped
	return errors.Join(err, ignoreClosed(metrics.Close()))
}

// awaitIdle waits for the delay and then for the last request in flight.
func (s *Server) awaitIdle(ctx context.Context, idle <-chan struct{}) error {
	_ = wait.For(ctx, s.config.ShutdownDelay)
	select {
	case <-idle:
		return nil
	default:
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return errGrace
	}
}

// stopGRPC lets g's connections end well, but not for longer than ctx.
func stopGRPC(ctx context.Context, g *grpc.Server) {
	cut := context.AfterFunc(ctx, g.Stop)
	defer cut()
	g.GracefulStop()
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
