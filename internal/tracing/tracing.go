// Package tracing sends spans of requests to an OpenTelemetry collector. The span of
// a request is in its context; where there is none, everything here does nothing and
// costs nothing.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `tracing` section.
type Config struct {
	// Endpoint is the URL of an OpenTelemetry collector that takes OTLP over HTTP, such as
	// `http://127.0.0.1:4318`; `/v1/traces` is added. Without it nothing is traced.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Sample is the share of requests that are traced, from 0 to 1. It is drawn for each
	// request; what callers say of their own traces has no effect on it.
	Sample float64 `yaml:"sample"`
}

// DefaultConfig traces nothing, and a tenth of the requests once there is an endpoint.
func DefaultConfig() Config { return Config{Sample: .1} }

// Check adds every fault of c to f; path is where c is in the document.
func (c *Config) Check(path string, f *setting.Faults) {
	if c.Endpoint != "" {
		setting.CheckURL(setting.Join(path, "endpoint"), c.Endpoint, true, f)
	}
	f.When(!(c.Sample >= 0 && c.Sample <= 1), setting.Join(path, "sample"), "%v isn't a share from 0 to 1", c.Sample)
}

// The bounds of what is sent, in docs/limits.md.
const (
	queuedSpans = 2048 // what ends beyond is dropped
	sentSpans   = 512  // in one message
	valueBytes  = 256  // of an attribute
	sendEvery   = 5 * time.Second
	sendTime    = 10 * time.Second
	flushTime   = 2 * time.Second
	answerBytes = 64 << 10
	quietTime   = time.Minute // between lines that say that spans were lost
)

// Options are what a Tracer works with.
type Options struct {
	Version string // of the program
	Logger  *slog.Logger
	Now     func() time.Time
}

// Tracer begins the spans of requests. A nil one begins none.
type Tracer struct {
	provider  *sdktrace.TracerProvider
	tracer    trace.Tracer
	exporter  *exporter
	transport *http.Transport
}

// New makes the Tracer of c, which was checked; nil without an endpoint. It connects
// when it has something to send. What could come from OTEL_* variables is set here.
func New(ctx context.Context, c Config, o Options) (*Tracer, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	to, err := url.JoinPath(c.Endpoint, "v1", "traces")
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	t := &Tracer{transport: http.DefaultTransport.(*http.Transport).Clone()} // net/http's own
	t.transport.MaxResponseHeaderBytes = answerBytes
	sent, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(to), otlptracehttp.WithTLSClientConfig(nil), otlptracehttp.WithHeaders(nil),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf), otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithTimeout(sendTime), otlptracehttp.WithMaxResponseSize(answerBytes),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: t.transport, Timeout: sendTime, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}}))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	t.exporter = &exporter{SpanExporter: sent, Options: o}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sampler(c.Sample)),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{AttributeCountLimit: 16, AttributeValueLengthLimit: valueBytes}),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "mayfly"), attribute.String("service.version", o.Version))),
		sdktrace.WithBatcher(t.exporter, sdktrace.WithMaxQueueSize(queuedSpans),
			sdktrace.WithMaxExportBatchSize(sentSpans), sdktrace.WithBatchTimeout(sendEvery), sdktrace.WithExportTimeout(sendTime)),
	)
	t.tracer = t.provider.Tracer(scope)
	traced.Store(true)
	return t, nil
}

// Close sends what has ended, for a short while.
func (t *Tracer) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if t.provider.Shutdown(ctx) != nil { // it still waits for the collector
		t.exporter.Logger.LogAttrs(ctx, slog.LevelWarn, "the collector of tracing.endpoint didn't take the last spans in time, and they are lost")
		_ = t.exporter.Shutdown(ctx) // which ends what is being sent
	}
	t.transport.CloseIdleConnections()
}

const scope = "github.com/mayfly-ca/mayfly"

// Begin begins the span of a request with the header h, as part of the trace that its
// caller names there, and returns the context that it is in.
func (t *Tracer) Begin(ctx context.Context, name string, h http.Header, at time.Time) context.Context {
	if t == nil {
		return ctx
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": h.Get("Traceparent")}) // and no tracestate, which is only long
	ctx, _ = t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(at))
	return ctx
}

// traced is whether this process has had a Tracer: without one no context is searched for a span.
var traced atomic.Bool

// On reports whether the request of ctx is traced.
func On(ctx context.Context) bool { return traced.Load() && trace.SpanFromContext(ctx).IsRecording() }

// Start begins a step of what ctx is about, and returns the context that it is in.
func Start(ctx context.Context, name string, at time.Time) context.Context {
	if !On(ctx) {
		return ctx
	}
	ctx, _ = trace.SpanFromContext(ctx).TracerProvider().Tracer(scope).Start(ctx, name, trace.WithTimestamp(at))
	return ctx
}

// End ends the span that Begin or Start put into ctx. Of err, which is nil where all went
// well, it has the reason: the text could quote what is for nobody else.
func End(ctx context.Context, at time.Time, err error, about ...attribute.KeyValue) {
	if On(ctx) {
		failed := ""
		if f := fault.From(err); f != nil {
			failed = string(f.Reason)
		}
		end(ctx, at, failed, about...)
	}
}

func end(ctx context.Context, at time.Time, failed string, about ...attribute.KeyValue) {
	span := trace.SpanFromContext(ctx)
	if failed != "" {
		span.SetStatus(codes.Error, failed)
	}
	span.SetAttributes(about...)
	span.End(trace.WithTimestamp(at))
}

// Step is a step of what ctx is about that is over. failed is one word that says why it
// failed, "" where it didn't.
func Step(ctx context.Context, name string, began, ended time.Time, failed string) {
	if On(ctx) {
		end(Start(ctx, name, began), ended, failed)
	}
}

// sampler draws whether a request is traced. It looks at nothing that its caller chose,
// neither flag nor id, by which anybody could have everything traced.
type sampler float64

// ShouldSample is for a request; a step is begun only where that is traced.
func (s sampler) ShouldSample(p sdktrace.SamplingParameters) (r sdktrace.SamplingResult) {
	parent := trace.SpanContextFromContext(p.ParentContext)
	if step := parent.IsValid() && !parent.IsRemote(); step || rand.Float64() < float64(s) { // #nosec G404 -- no secret
		r.Decision = sdktrace.RecordAndSample
	}
	return r
}

// Description is for those who look at the provider.
func (sampler) Description() string { return "drawn" }

// exporter logs at times what couldn't be sent, in the place of OpenTelemetry's own handler.
type exporter struct {
	sdktrace.SpanExporter
	Options
	lost  int
	quiet time.Time
}

// ExportSpans sends spans, or counts them as lost. It is called once at a time.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.lost += len(spans)
	if now := e.Now(); !now.Before(e.quiet) {
		e.Logger.LogAttrs(ctx, slog.LevelWarn, "spans could not be sent to tracing.endpoint, and are lost",
			slog.Int("spans", e.lost), slog.Any("error", oneline.Error(err, valueBytes)))
		e.lost, e.quiet = 0, now.Add(quietTime)
	}
	return nil
}
