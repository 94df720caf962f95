package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

var errGrace = errors.New("server: requests were still in flight when the grace period ended, and were cut off")

// Serve answers requests until ctx ends, and then drains: readiness is false and
// new requests get 503 from that moment; listeners close when the delay has
// passed and nothing is in flight, or the grace period has ended, which cuts off
// what remains and is an error. Serve may be called once, after Listen.
func (s *Server) Serve(ctx context.Context) error {
	if s.listeners.http == nil {
		return errors.New("server: Serve before Listen")
	}
	// What is in flight outlives ctx, to be finished.
	lasting := context.WithoutCancel(ctx)
	servers := make([]*http.Server, 0, 3)
	group, failed := errgroup.WithContext(ctx)
	start := func(server *http.Server, l net.Listener) {
		servers = append(servers, server)
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	start(s.newHTTP(lasting, s.listeners.http, s.serveHTTP, "h2", "http/1.1"))
	if s.listeners.grpc != nil {
		start(s.newHTTP(lasting, s.listeners.grpc, s.serveGRPCPort, "h2"))
	}
	if s.listeners.metrics != nil {
		start(s.newMetricsHTTP(lasting), s.listeners.metrics)
	}
	group.Go(func() error { s.ready.watch(failed); return nil })
	group.Go(func() error {
		<-failed.Done()
		return s.drain(lasting, servers)
	})
	return group.Wait()
}

// How HTTP/2 is spoken on both ports.
const (
	// silentTime is when a silent client is pinged, pingTime how long its answer may take.
	silentTime, pingTime = 2 * time.Minute, 20 * time.Second
	// connectionWindow is how much a connection may have sent that no request has
	// read: the least that HTTP/2 knows (RFC 9113 §6.9.2).
	connectionWindow = 64 << 10
	// frameSize is the largest frame that is read, and held whole: the least that
	// HTTP/2 knows (RFC 9113 §4.2).
	frameSize = 16 << 10
)

// newHTTP makes the server of one of the API's ports, and the listener it serves.
func (s *Server) newHTTP(ctx context.Context, l net.Listener, h http.HandlerFunc, protocols ...string) (*http.Server, net.Listener) {
	limits, certificates := s.config.Limits, s.listeners.certificates
	api := s.limitedHTTP(ctx, h, limits.ReadTimeout+s.config.RequestTimeout+limits.WriteTimeout)
	api.Protocols = new(http.Protocols)
	api.Protocols.SetHTTP1(slices.Contains(protocols, "http/1.1"))
	api.Protocols.SetHTTP2(true)
	api.Protocols.SetUnencryptedHTTP2(certificates == nil)
	api.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: limits.Streams, PingTimeout: pingTime, SendPingTimeout: silentTime, WriteByteTimeout: limits.WriteTimeout,
		MaxReadFrameSize: frameSize, MaxReceiveBufferPerConnection: connectionWindow, MaxReceiveBufferPerStream: connectionWindow,
	}
	reflects := s.config.Reflection || onLoopback(l)
	api.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, &connection{Conn: c, reflects: reflects})
	}
	if certificates != nil {
		l = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificates.get, NextProtos: protocols})
	}
	return api, l
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
		ErrorLog:          slog.NewLogLogger(s.with.Logger.Handler(), slog.LevelDebug),
	}
}

// flushTime is how long answers that are already made may take to be sent.
const flushTime = time.Second

// drain ends all servers within the grace period.
func (s *Server) drain(ctx context.Context, servers []*http.Server) error {
	s.with.Logger.LogAttrs(ctx, slog.LevelInfo, "shutting down: new requests are refused, those in flight finish",
		slog.Duration("grace", s.config.ShutdownGrace))
	idle := s.inFlight.close()
	s.ready.health.Shutdown() // NOT_SERVING from now on, whatever the dependencies say
	grace, cancel := context.WithTimeout(ctx, s.config.ShutdownDelay+s.config.ShutdownGrace)
	defer cancel()
	_ = wait.For(grace, s.config.ShutdownDelay)
	var errs []error
	select {
	case <-idle:
	case <-grace.Done():
		if s.inFlight.count() > 0 { // else both came at the same moment
			errs = append(errs, errGrace)
		}
	}
	// What remains waits for its client, and would for ever: health watches, slow
	// bodies, answers that nobody reads.
	s.places.evictAll()
	flush, stop := context.WithTimeout(grace, flushTime)
	defer stop()
	for _, one := range servers {
		if one.Shutdown(flush) == nil {
			continue
		}
		if err := one.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
