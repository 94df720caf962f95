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
	"google.golang.org/grpc/credentials"

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
	rest, native, metrics := s.listeners.http, s.newGRPC(), s.newMetricsHTTP(lasting)
	if t := s.listeners.certificates; t != nil {
		rest, native = tls.NewListener(rest, t.tlsConfig()), s.newGRPC(grpc.Creds(credentials.NewTLS(t.tlsConfig())))
	}
	api := s.newHTTP(lasting)
	group, failed := errgroup.WithContext(ctx)
	group.Go(func() error { return but(api.Serve(rest), http.ErrServerClosed) })
	if s.listeners.grpc != nil {
		group.Go(func() error { return native.Serve(s.listeners.grpc) })
	}
	if s.listeners.metrics != nil {
		group.Go(func() error { return but(metrics.Serve(s.listeners.metrics), http.ErrServerClosed) })
	}
	group.Go(func() error { s.ready.watch(failed); return nil })
	group.Go(func() error {
		<-failed.Done()
		return s.drain(lasting, api, native, metrics)
	})
	return group.Wait()
}

// but is err, or nil where err is the end that was asked for.
func but(err, asked error) error {
	if errors.Is(err, asked) {
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
	api := s.limitedHTTP(ctx, http.HandlerFunc(s.serveHTTP), l.ReadTimeout+s.config.RequestTimeout+l.HeaderTimeout)
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
func (s *Server) drain(ctx context.Context, api *http.Server, native *grpc.Server, metrics *http.Server) error {
	s.logger.LogAttrs(ctx, slog.LevelInfo, "shutting down: new requests are refused, those in flight finish",
		slog.Duration("grace", s.config.ShutdownGrace))
	idle := s.inFlight.close()
	s.ready.health.Shutdown() // NOT_SERVING from now on, whatever the dependencies say
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
		cut := context.AfterFunc(flush, native.Stop)
		defer cut()
		native.GracefulStop()
	}()
	s.grpcShared.Stop()
	if shutdownErr := api.Shutdown(grace); shutdownErr != nil {
		err = errors.Join(err, but(api.Close(), net.ErrClosed))
	}
	<-stopped
	return errors.Join(err, but(metrics.Close(), net.ErrClosed))
}

// awaitIdle waits for the delay and then for the last request in flight.
func (s *Server) awaitIdle(grace context.Context, idle <-chan struct{}) error {
	_ = wait.For(grace, s.config.ShutdownDelay)
	select {
	case <-idle:
		return nil
	case <-grace.Done():
	}
	select {
	case <-idle: // at the same moment
		return nil
	default:
		return errGrace
	}
}
