package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
)

// How long a client waits before it asks again.
const (
	retryShutdown = time.Second
	retryOverload = time.Second
)

// auditTimeout bounds the record of a refusal, which is written even when the
// client has gone.
const auditTimeout = 5 * time.Second

// edge is how a request came.
type edge string

const (
	edgeGRPC edge = "grpc"
	edgeREST edge = "rest"
)

// method is one method of the API.
type method struct {
	name   string // of the log, the metrics and the audit trail, the same on both edges
	issues bool   // whether it makes a certificate
}

var (
	createV2        = method{name: "v2.CreateSigningCertificate", issues: true}
	trustBundle     = method{name: "v2.GetTrustBundle"}
	configuration   = method{name: "v2.GetConfiguration"}
	createV1        = method{name: "v1beta.CreateSigningCertificate", issues: true}
	rootCertificate = method{name: "v1beta.GetRootCertificate"}
)

// call is what becomes known of one request while it is served. Handlers fill
// in what they learn; the chain makes the log line, the metrics and the audit
// record of it.
type call struct {
	method method
	edge   edge
	start  time.Time
	who    identity.Principal // zero until the token is verified
	key    proof.Key          // zero until possession is shown
}

// serve is the one chain that every API request goes through on either edge:
// admission, deadline, panic, and then the log line, the metrics and the audit
// record. Its error is a *fault.Error. ctx carries the request id.
func serve[T any](ctx context.Context, s *Server, e edge, m method, handle func(context.Context, *call) (*T, error)) (*T, error) {
	c := &call{method: m, edge: e, start: s.now()}
	if f := s.gate.enter(m.issues); f != nil {
		return nil, s.finish(ctx, c, f)
	}
	defer s.gate.leave(m.issues)

	limited, cancel := context.WithTimeout(ctx, s.config.RequestTimeout)
	defer cancel()
	out, err := guarded(limited, s, c, handle)
	if err := s.finish(ctx, c, classify(limited, err)); err != nil {
		return nil, err
	}
	return out, nil
}

// guarded turns a panic in handle into an error, and logs its stack.
func guarded[T any](ctx context.Context, s *Server, c *call, handle func(context.Context, *call) (*T, error)) (out *T, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(ctx, c.method.name, p)
			out, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	return handle(ctx, c)
}

// panicked counts and logs a panic. It is called while the stack is still there.
func (s *Server) panicked(ctx context.Context, route string, p any) {
	s.metrics.panics.Inc()
	s.logger.LogAttrs(ctx, slog.LevelError, "panic", slog.String("request_id", requestid.From(ctx)),
		slog.String("route", route), slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
}

// classify makes a *fault.Error of err. What nobody classified, but happened
// after the request's time had run out or its client had gone, is that.
func classify(ctx context.Context, err error) *fault.Error {
	f := fault.From(err)
	if f != nil && f.Reason == fault.ReasonInternal && ctx.Err() != nil {
		return fault.From(ctx.Err()).Because(err)
	}
	return f
}

// finish accounts for the end of a request; f is nil when it went well. It
// returns f as an error, nil for nil.
func (s *Server) finish(ctx context.Context, c *call, f *fault.Error) error {
	took := s.now().Sub(c.start)
	if f == nil {
		s.metrics.request(c, nil, took)
		s.logRequest(ctx, c, nil, took)
		return nil
	}
	if c.method.issues {
		s.audit(ctx, c, f)
	}
	s.metrics.request(c, f, took)
	s.logRequest(ctx, c, f, took)
	return f
}

// audit records a refusal. Two kinds are left out: failures after the key was
// proven that aren't the client's, because ca.Issue records what it began; and
// load that was shed, which must stay cheaper than it was to send. A
// record that can't be written changes nothing for the client, whom the refusal
// stands against either way: told to try again, it would only be refused again.
func (s *Server) audit(ctx context.Context, c *call, f *fault.Error) {
	kind, begun := audit.Denied, !c.key.IsZero()
	if oursToMend(f.Kind()) || f.Kind() == fault.Canceled && begun {
		kind = audit.Failed
	}
	if kind == audit.Failed && begun || c.shed(f) {
		return
	}
	a := answerTo(f, "")
	e := audit.Event{
		Type: kind, Time: s.now(), RequestID: requestid.From(ctx), Reason: a.reason, Message: a.message, Rule: f.Metadata["rule"],
		RemoteAddr: remote(ctx), Method: c.method.name,
	}
	if !c.who.IsZero() {
		e.Issuer, e.IssuerType, e.Subject = c.who.Issuer(), c.who.IssuerType(), c.who.Subject()
		e.SAN, e.SANType = c.who.SAN().Value, c.who.SAN().Kind.String()
	}
	if begun {
		e.KeyAlgorithm = c.key.Algorithm()
	}
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if err := s.auditor.Record(lasting, e); err != nil {
		s.metrics.unaudited.Inc()
		s.logger.LogAttrs(ctx, slog.LevelError, "a refusal could not be recorded in the audit trail",
			slog.String("request_id", e.RequestID), slog.Any("error", err))
	}
}

// shed reports whether f turned the request away for load alone, before anybody
// knew whose it is.
func (c *call) shed(f *fault.Error) bool {
	return f.Reason == fault.Overloaded || f.Reason == fault.ShuttingDown || f.Reason == fault.RateExceeded && c.who.IsZero()
}

// oursToMend reports whether a failure is ours or a dependency's, not the client's.
func oursToMend(k fault.Kind) bool {
	return k == fault.Internal || k == fault.Unavailable || k == fault.DeadlineExceeded
}

// logRequest writes the one line of a request. It never holds a token, a key or a proof.
func (s *Server) logRequest(ctx context.Context, c *call, f *fault.Error, took time.Duration) {
	level, state, code := slog.LevelInfo, "OK", 200
	if f != nil {
		a := answerTo(f, "")
		state, code = string(a.reason), a.http
		switch {
		case oursToMend(f.Kind()):
			level = slog.LevelError
		case c.shed(f):
			level = slog.LevelDebug // the metric counts them; a line each would help the flood
		}
	}
	if !s.logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("request_id", requestid.From(ctx)), slog.String("route", c.method.name),
		slog.String("edge", string(c.edge)), slog.String("status", state), slog.Int("code", code),
		slog.Duration("duration", took), slog.String("remote", remote(ctx)))
	if !c.who.IsZero() {
		attrs = append(attrs, slog.String("issuer_type", c.who.IssuerType()), slog.String("san_kind", c.who.SAN().Kind.String()))
	}
	if f != nil {
		attrs = append(attrs, slog.Any("error", f))
	}
	s.logger.LogAttrs(ctx, level, "request", attrs...)
}

// remote is the address of the peer, or "".
func remote(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

func itoa(n int) string { return strconv.Itoa(n) }
