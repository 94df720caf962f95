package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
)

// undecodable classifies the failure of a decoder, whose text names a place in
// the request and nothing of its content.
func undecodable(err error) *fault.Error {
	if st, ok := status.FromError(err); ok && st.Code() == codes.InvalidArgument {
		return fault.New(fault.RequestMalformed, "%s", st.Message())
	}
	return fault.From(err)
}

// admit refuses a request for a certificate, before anything of it is read, when
// there are too many from its address.
func (s *Server) admit(m method, client netip.Addr) *fault.Error {
	if !m.issues {
		return nil
	}
	return s.metrics.limited(s.terms.Load().limiters.admit(client, s.now()))
}

// refuse accounts for an API request that could not be read, and so never
// reached its handler.
func (s *Server) refuse(ctx context.Context, m method, e edge, f *fault.Error) {
	// The error is f again, which the caller sends.
	_ = s.finish(ctx, &call{method: m, edge: e, start: s.now()}, f)
}

// refusePage answers and accounts for a request outside the API that failed.
func (s *Server) refusePage(w http.ResponseWriter, r *http.Request, route string, f *fault.Error) {
	answerTo(f, requestid.From(r.Context())).write(w)
	s.page(r, route, answerTo(f, "").http, f)
}

// page accounts for the end of a request outside the API: the metric and the
// log line, which for a success is at debug level (probes and readers are many).
func (s *Server) page(r *http.Request, route string, code int, f *fault.Error) {
	level, state, reason := slog.LevelDebug, "OK", fault.Reason("")
	if f != nil {
		level, reason = slog.LevelInfo, answerTo(f, "").reason
		state = string(reason)
		if f.Kind() == fault.Internal {
			level = slog.LevelError
		}
	}
	s.metrics.page(route, code, reason)
	ctx := r.Context()
	if !s.logger.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request_id", requestid.From(ctx)), slog.String("route", route), slog.String("edge", string(edgeREST)),
		slog.String("status", state), slog.Int("code", code), slog.String("remote", remote(ctx)),
	}
	if f != nil {
		attrs = append(attrs, slog.Any("error", f))
	}
	s.logger.LogAttrs(ctx, level, "request", attrs...)
}
