package server

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	"github.com/mayfly-ca/mayfly/internal/tracing"
)

// auditTimeout bounds the record of a refusal, which is written even when the
// client has gone.
const auditTimeout = 5 * time.Second

// finish accounts for the end of a request, whichever edge it came by: the audit
// record of a refusal, the metrics, the log line. f is nil when it went well.
// finish returns f as an error, nil for nil.
func (s *Server) finish(ctx context.Context, c *call, f *fault.Error) error {
	took := s.with.Now().Sub(c.start)
	a := answer{outcome: outcome{http: http.StatusOK}, reason: "OK"}
	if f != nil {
		a = answerTo(f, "")
	}
	if c.code != 0 {
		a.http = c.code
	}
	if f != nil && (c.issues || c.act != "") {
		s.audit(ctx, c, f, a)
	}
	s.metrics.request(c, a, took)
	s.logRequest(ctx, c, f, a, took)
	c.trace(ctx, f, a, c.start.Add(took))
	if f == nil {
		return nil
	}
	return f
}

// audit records a refusal. Two kinds are left out: failures after the key was
// proven that aren't the client's, because ca.Issue records what it began; and
// load that was shed, which must stay cheaper than it was to send. A record that
// can't be written changes nothing for the client: the refusal stands, and a
// client that is told to try again would only be refused again.
func (s *Server) audit(ctx context.Context, c *call, f *fault.Error, a answer) {
	kind, begun := audit.Denied, !c.key.IsZero()
	if notTheClients(f.Kind()) || f.Kind() == fault.Canceled && begun {
		kind = audit.Failed
	}
	if kind == audit.Failed && begun || c.shed(f) {
		return
	}
	e := audit.Event{
		Type: kind, Time: s.with.Now(), RequestID: requestid.From(ctx), Reason: a.reason, Message: a.message, Rule: f.Metadata["rule"],
		RemoteAddr: remote(ctx), Method: c.name, Act: c.act,
	}
	c.identify(&e)
	if begun {
		e.KeyAlgorithm = c.key.Algorithm()
	}
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if err := s.with.Auditor.Record(lasting, e); err != nil {
		s.metrics.unaudited.Inc()
		s.with.Logger.LogAttrs(ctx, slog.LevelError, "a refusal could not be recorded in the audit trail",
			slog.String("request_id", e.RequestID), slog.Any("error", err))
	}
}

// identify says in e who asks, as far as that is known.
func (c *call) identify(e *audit.Event) {
	if g := c.grant; g.Right != "" {
		e.Issuer, e.IssuerType, e.Subject, e.SAN, e.SANType = g.Issuer, g.IssuerType, g.Subject, g.SAN, g.SANType
		if g.Rule != "" {
			e.Rule = g.Rule
		}
	}
	if !c.who.IsZero() {
		e.Issuer, e.IssuerType, e.Subject = c.who.Issuer(), c.who.IssuerType(), c.who.Subject()
		e.SAN, e.SANType = c.who.SAN().Value, c.who.SAN().Kind.String()
	}
	if r := c.refused; r != nil {
		e.Issuer, e.IssuerType, e.Subject = r.Issuer, r.IssuerType, r.Subject
		if r.SAN.Value != "" {
			e.SAN, e.SANType = r.SAN.Value, r.SAN.Kind.String()
		}
	}
}

// shed reports whether f turned the request away for load alone, before anybody
// knew whose it is.
func (c *call) shed(f *fault.Error) bool {
	return f.Reason == fault.Overloaded || f.Reason == fault.ShuttingDown || f.Reason == fault.RateExceeded && c.who.IsZero()
}

// notTheClients reports whether a failure is ours or a dependency's.
func notTheClients(k fault.Kind) bool {
	return k == fault.Internal || k == fault.Unavailable || k == fault.DeadlineExceeded
}

// level is that of a request's log line. Probes and readers are many: a page that
// went well is at debug level. So is what an address asked beyond its limit, which
// the metric counts: a line each would help the flood.
func (c *call) level(f *fault.Error) slog.Level {
	switch {
	case f == nil && c.page():
		return slog.LevelDebug
	case f == nil:
		return slog.LevelInfo
	case f.Kind() == fault.Internal || !c.page() && notTheClients(f.Kind()):
		return slog.LevelError
	case !c.page() && c.shed(f):
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// logRequest writes the one line of a request. It never holds a token, a key or a proof.
func (s *Server) logRequest(ctx context.Context, c *call, f *fault.Error, a answer, took time.Duration) {
	level := c.level(f)
	if !s.with.Logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("request_id", requestid.From(ctx)), slog.String("route", c.name),
		slog.String("edge", string(c.edge)), slog.String("status", string(a.reason)), slog.Int("code", a.http))
	if !c.page() {
		attrs = append(attrs, slog.Duration("duration", took))
	}
	attrs = append(attrs, slog.String("remote", remote(ctx)))
	if !c.who.IsZero() {
		attrs = append(attrs, slog.String("issuer_type", c.who.IssuerType()), slog.String("san_kind", c.who.SAN().Kind.String()))
	}
	if f != nil {
		attrs = append(attrs, slog.Any("error", f))
	}
	s.with.Logger.LogAttrs(ctx, level, "request", attrs...)
}

// trace ends the span of a request. Nothing in it says who asked.
func (c *call) trace(ctx context.Context, f *fault.Error, a answer, at time.Time) {
	if !tracing.On(ctx) {
		return
	}
	var failed error // of ours
	if f != nil && notTheClients(f.Kind()) {
		failed = f
	}
	issuer := c.who.Issuer()
	if c.refused != nil {
		issuer = c.refused.Issuer
	}
	tracing.End(ctx, at, failed, attribute.String("mayfly.request_id", requestid.From(ctx)), attribute.String("mayfly.edge", string(c.edge)),
		attribute.String("mayfly.reason", string(a.reason)), attribute.String("mayfly.issuer", issuer), attribute.Int("http.response.status_code", a.http))
}

// remote is the address of the client, or "".
func remote(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// Stages of a request, the label of mayfly_request_seconds.
const (
	stageAuthenticate = "authenticate"
	stageProve        = "prove"
	stageIssue        = "issue"
	stageTotal        = "total"
)

// metrics are the Server's own. Every label value comes from a closed list, so
// that no client can make series.
type metrics struct {
	now       func() time.Time
	requests  *prometheus.CounterVec
	stages    map[string]prometheus.Observer
	panics    prometheus.Counter
	unaudited prometheus.Counter
	evicted   prometheus.Counter
	places    prometheus.Counter
	shed      *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, inFlight func() float64, now func() time.Time) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mayfly_request_seconds",
		Help:    "Time spent in each stage of issuing requests; total is of every API request.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"stage"})
	m := &metrics{
		now: now,
		requests: metric.Counter("mayfly_requests_total", "Requests by route, edge (grpc, rest), HTTP status of the result, reason of a refusal (OK when none), and type of issuer.",
			"route", "edge", "code", "reason", "issuer_type"),
		stages:    map[string]prometheus.Observer{},
		panics:    counter("mayfly_panics_total", "Requests that ended in a panic. Each is a defect."),
		unaudited: counter("mayfly_refusals_unaudited_total", "Refusals that could not be recorded in the audit trail."),
		evicted:   counter("mayfly_connections_evicted_total", "Quiet connections closed to make room for new ones."),
		places:    counter("mayfly_requests_evicted_total", "Requests ended because they waited for their client while others needed their place, and requests that were not even answered."),
		shed:      metric.Counter("mayfly_rate_limited_total", "Requests refused for a rate limit, by what the limit is on (address, principal, issuer, log_reads, timestamps).", "limit"),
	}
	for _, limit := range rateLimits {
		m.shed.WithLabelValues(limit.name)
	}
	for _, stage := range []string{stageAuthenticate, stageProve, stageIssue, stageTotal} {
		m.stages[stage] = seconds.WithLabelValues(stage)
	}
	return m, metric.Register(r, m.requests, seconds, m.panics, m.unaudited, m.evicted, m.places, m.shed,
		metric.Read("mayfly_requests_in_flight", "Requests being served.", nil, inFlight))
}

// stage begins to time a stage, and its span, which is in the context that it returns;
// the function it returns ends both.
func (m *metrics) stage(ctx context.Context, name string) (context.Context, func(error)) {
	begun := m.now()
	ctx = tracing.Start(ctx, name, begun)
	return ctx, func(err error) {
		ended := m.now()
		m.stages[name].Observe(ended.Sub(begun).Seconds())
		tracing.End(ctx, ended, err)
	}
}

// limited counts f, a rate limit's refusal, if it is one, and returns it.
func (m *metrics) limited(f *fault.Error) *fault.Error {
	if f != nil {
		m.shed.WithLabelValues(f.Metadata["limit"]).Inc()
	}
	return f
}

// request counts the end of a request.
func (m *metrics) request(c *call, a answer, took time.Duration) {
	issuerType, code := "none", "200" // the usual code, for which Itoa would allocate
	if !c.who.IsZero() {
		issuerType = c.who.IssuerType()
	}
	if a.http != http.StatusOK {
		code = strconv.Itoa(a.http)
	}
	m.requests.WithLabelValues(c.name, string(c.edge), code, string(a.reason), issuerType).Inc()
	if !c.page() {
		m.stages[stageTotal].Observe(took.Seconds())
	}
}

// domain is google.rpc.ErrorInfo.domain: whose list the reasons belong to.
const domain = "mayfly.dev"

// outcome is what a kind of failure looks like on both edges.
type outcome struct {
	code codes.Code
	http int
	// fixed, when not empty, replaces the failure's own text and metadata.
	fixed string
	// retry is the Retry-After of a failure that names none; zero sends none.
	retry time.Duration
}

// statusClientGone is what logs and metrics say of a request whose client went
// away; nobody reads it on the wire. The number is nginx's.
const statusClientGone = 499

// outcomes is the one table from kind to gRPC code and HTTP status.
var outcomes = map[fault.Kind]outcome{
	fault.Internal:         {code: codes.Internal, http: http.StatusInternalServerError, fixed: "internal error"},
	fault.Malformed:        {code: codes.InvalidArgument, http: http.StatusBadRequest},
	fault.TooLarge:         {code: codes.InvalidArgument, http: http.StatusRequestEntityTooLarge},
	fault.Unauthenticated:  {code: codes.Unauthenticated, http: http.StatusUnauthorized},
	fault.Denied:           {code: codes.PermissionDenied, http: http.StatusForbidden},
	fault.RateLimited:      {code: codes.ResourceExhausted, http: http.StatusTooManyRequests, retry: 5 * time.Second},
	fault.Unavailable:      {code: codes.Unavailable, http: http.StatusServiceUnavailable, retry: 5 * time.Second},
	fault.DeadlineExceeded: {code: codes.DeadlineExceeded, http: http.StatusGatewayTimeout, fixed: "the request's time ran out; try again"},
	fault.Canceled:         {code: codes.Canceled, http: statusClientGone, fixed: "the client went away"},
	fault.NotFound:         {code: codes.NotFound, http: http.StatusNotFound},
	fault.NotAllowed:       {code: codes.Unimplemented, http: http.StatusMethodNotAllowed},
}

// answer is a failure as the client reads it, on either edge.
type answer struct {
	outcome
	reason   fault.Reason
	message  string
	metadata map[string]string
	retry    time.Duration
	id       string
}

// answerTo says what the client with request id reads about f. What is ours
// has fixed text: nothing of the failure itself gets out.
func answerTo(f *fault.Error, id string) answer {
	o := outcomes[f.Kind()]
	a := answer{outcome: o, reason: f.Reason, message: strings.ToValidUTF8(f.Public, "\uFFFD"), metadata: f.Metadata, retry: o.retry, id: id}
	if f.Kind() == fault.Internal {
		a.reason = fault.ReasonInternal
	}
	if o.fixed != "" {
		a.message, a.metadata = o.fixed, nil
	}
	if o.retry > 0 && f.RetryAfter != 0 { // not sent where it is fault.NoRetry
		a.retry = f.RetryAfter
	}
	return a
}

// Answer is the HTTP status of a failure, and what the client reads of it.
func Answer(f *fault.Error) (code int, words string) {
	a := answerTo(f, "")
	return a.http, a.message
}

// status is the answer as a google.rpc.Status with its details.
func (a answer) status() *status.Status {
	s := status.New(a.code, a.message)
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: string(a.reason), Domain: domain, Metadata: a.metadata},
		&errdetails.RequestInfo{RequestId: a.id},
	}
	if a.retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(a.retry)})
	}
	detailed, err := s.WithDetails(details...)
	if err != nil { // a metadata value that isn't UTF-8: the status alone must do
		return s
	}
	return detailed
}

// grpc is the answer as a gRPC status error.
func (a answer) grpc() error { return a.status().Err() }

// body is the answer as the JSON of a google.rpc.Status.
func (a answer) body() []byte {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(a.status().Proto())
	if err != nil { // can't be: its text is UTF-8
		return []byte(`{"code":13,"message":"internal error","details":[]}`)
	}
	return b
}

// write sends the answer over HTTP.
func (a answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Del("ETag")
	if a.code == codes.Unauthenticated { // RFC 9110 §11.6.1
		h.Set("WWW-Authenticate", `Bearer realm="mayfly"`)
	}
	a.send(w, "application/json", a.body())
}

// send sends a body with the answer's status, and when to try again: whole seconds,
// rounded up. It is never HTML, and nobody else reads it when the client has gone.
func (a answer) send(w http.ResponseWriter, media string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Cache-Control", "no-store")
	if a.retry > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((a.retry+time.Second-1)/time.Second), 10))
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.http)
	_, _ = w.Write(body) // #nosec G705 -- it is never HTML
}
