package server

import (
	"context"
	"crypto/tls"
	"errors"
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

var (
	errNotListening = errors.New("server: Serve before Listen")
	errGrace        = errors.New("server: requests were still in flight when the grace period ended, and were cut off")
)

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
		s.grpcNative = s.newGRPC(tlsOption(t)...)
	}
	group, failed := errgroup.WithContext(ctx)
	group.Go(func() error { return ended(api.Serve(s.restListener())) })
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

// restListener is the REST listener, with TLS when there is a certificate.
func (s *Server) restListener() net.Listener {
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
	api := s.limitedHTTP(ctx, s.Handler(), l.ReadTimeout+s.config.RequestTimeout+l.HeaderTimeout)
	api.Protocols = protocols
	api.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: l.Streams, PingTimeout: keepaliveWait, SendPingTimeout: keepaliveTime}
	return api
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
	return s.limitedHTTP(ctx, mux, time.Minute)
}

// limitedHTTP makes an HTTP server within the configured limits on requests.
func (s *Server) limitedHTTP(ctx context.Context, h http.Handler, write time.Duration) *http.Server {
	l := s.config.Limits
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		WriteTimeout:      write,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.HeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

// flushTime is how long answers that are already made may take to be sent.
const flushTime = time.Second

// drain ends both edges within the grace period.
func (s *Server) drain(ctx context.Context, api, metrics *http.Server) error {
	s.logger.LogAttrs(ctx, slog.LevelInfo, "shutting down: new requests are refused, those in flight finish",
		slog.Duration("grace", s.config.ShutdownGrace))
	idle := s.inFlight.close()
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
