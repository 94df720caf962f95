package tracing_test

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/tracing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// received is what a collector was sent.
type received struct {
	mu    sync.Mutex
	heads []http.Header
	paths []string
	spans []*tracepb.Span
	about []string // the resource's attributes
}

func collect(t *testing.T) (*received, string) {
	t.Helper()
	r := &received{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		unpacked, err := gzip.NewReader(q.Body)
		if err != nil {
			t.Error(err)
			return
		}
		data, err := io.ReadAll(unpacked)
		var m collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(data, &m) != nil {
			t.Errorf("%d bytes that are no request: %v", len(data), err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.heads, r.paths = append(r.heads, q.Header), append(r.paths, q.URL.Path)
		for _, of := range m.GetResourceSpans() {
			for _, a := range of.GetResource().GetAttributes() {
				r.about = append(r.about, a.GetKey()+"="+a.GetValue().GetStringValue())
			}
			for _, s := range of.GetScopeSpans() {
				r.spans = append(r.spans, s.GetSpans()...)
			}
		}
	}))
	t.Cleanup(s.Close)
	return r, s.URL
}

func newTracer(t *testing.T, c tracing.Config, o tracing.Options) *tracing.Tracer {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	tracer, err := tracing.New(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

const (
	theirTrace, theirSpan = "0123456789abcdef0123456789abcdef", "0123456789abcdef"
	sampled               = "00-" + theirTrace + "-" + theirSpan + "-01"
)

// TestSpans: a request continues its caller's trace, has its steps below it, and says of
// errors the reason alone. No OTEL_* variable changes where and how that is sent.
func TestSpans(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://192.0.2.1", "OTEL_EXPORTER_OTLP_HEADERS": "x-other=1",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_COMPRESSION": "none", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/missing",
		"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_TRACES_SAMPLER": "always_off", "OTEL_SERVICE_NAME": "other", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0",
		"OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=a,service.name=other",
	} {
		t.Setenv(name, value)
	}
	got, url := collect(t)
	tracer := newTracer(t, tracing.Config{Endpoint: url, Sample: 1}, tracing.Options{Version: "v1"})
	at := time.Unix(1e9, 0)
	request := tracer.Begin(t.Context(), "request", http.Header{"Traceparent": {sampled}, "Tracestate": {"a=b"}}, at)
	step := tracing.Start(request, "step", at.Add(1))
	tracing.Step(step, "below", at.Add(2), at.Add(3), "timeout")
	tracing.End(step, at.Add(4), fault.New(fault.PolicyDenied, "a secret"))
	tracing.End(request, at.Add(5), nil, attribute.String("long", strings.Repeat("x", 1000)))
	tracer.Close(t.Context())

	if len(got.spans) != 3 || got.paths[0] != "/v1/traces" || got.heads[0].Get("X-Other") != "" || got.heads[0].Get("Content-Type") != "application/x-protobuf" {
		t.Fatalf("%v to %v, %v", got.spans, got.paths, got.heads)
	}
	if about := strings.Join(got.about, " "); about != "k8s.pod.name=a service.name=mayfly service.version=v1" {
		t.Error("the resource says ", about)
	}
	ids := map[string]string{theirSpan: "theirs"}
	for _, s := range got.spans {
		ids[hex.EncodeToString(s.GetSpanId())] = s.GetName()
	}
	for i, want := range []struct {
		name, parent, failed string
		began, took          uint64
	}{{"below", "step", "timeout", 2, 1}, {"step", "request", "POLICY_DENIED", 1, 3}, {"request", "theirs", "", 0, 5}} {
		s := got.spans[i]
		if s.GetName() != want.name || ids[hex.EncodeToString(s.GetParentSpanId())] != want.parent || s.GetStatus().GetMessage() != want.failed ||
			hex.EncodeToString(s.GetTraceId()) != theirTrace || s.GetTraceState() != "" ||
			s.GetStartTimeUnixNano() != uint64(at.UnixNano())+want.began || s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != want.took {
			t.Errorf("%v; %+v is expected", s, want)
		}
	}
	if n := len(got.spans[2].GetAttributes()[0].GetValue().GetStringValue()); n != 256 {
		t.Errorf("an attribute of %d bytes", n)
	}
}

// TestCallersDontChoose: neither a caller's flag nor an id that ratios take has a request traced.
func TestCallersDontChoose(t *testing.T) {
	t.Parallel()
	got, url := collect(t)
	tracer := newTracer(t, tracing.Config{Endpoint: url}, tracing.Options{})
	ctx := tracer.Begin(t.Context(), "request", http.Header{"Traceparent": {"00-00000000000000000000000000000001-" + theirSpan + "-01"}}, time.Now())
	tracing.End(tracing.Start(ctx, "step", time.Now()), time.Now(), nil)
	tracing.End(ctx, time.Now(), nil)
	tracer.Close(t.Context())
	if len(got.spans) != 0 || tracing.On(ctx) {
		t.Error(got.spans)
	}
}

// TestOff: what isn't traced costs nothing.
func TestOff(t *testing.T) {
	tracer := newTracer(t, tracing.DefaultConfig(), tracing.Options{})
	defer tracer.Close(t.Context())
	ctx, at, header, failed := t.Context(), time.Now(), http.Header{"Traceparent": {sampled}}, fault.New(fault.PolicyDenied, "denied")
	if n := testing.AllocsPerRun(10, func() {
		request := tracer.Begin(ctx, "request", header, at)
		step := tracing.Start(request, "step", at)
		tracing.Step(step, "below", at, at, "failed")
		tracing.End(step, at, failed)
		tracing.End(request, at, io.EOF)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCollectorDown: nobody waits for a collector that hangs or refuses, or reads all that it says, and its log stays short.
func TestCollectorDown(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(w http.ResponseWriter, q *http.Request){
		"hangs": func(_ http.ResponseWriter, q *http.Request) { _, _ = io.Copy(io.Discard, q.Body); <-q.Context().Done() },
		"refuses": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("no\n", 1000), http.StatusForbidden)
		},
		"has much to say": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) },
		"has a long head": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Long", strings.Repeat("x", 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(answer))
			defer s.Close()
			var log catest.Lines
			tracer := newTracer(t, tracing.Config{Endpoint: s.URL, Sample: 1}, tracing.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			const requests = 10000
			for range requests {
				tracing.End(tracer.Begin(t.Context(), "request", nil, time.Now()), time.Now(), nil)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ended := make(chan struct{})
			go func() { tracer.Close(ctx); close(ended) }()
			select {
			case <-ended:
			case <-ctx.Done():
				t.Fatal("its end waits for the collector")
			}
			if text := log.String(); strings.Count(text, "\n") > 2 || len(text) > 600 || !strings.Contains(text, "are lost") {
				t.Errorf("its log:\n%s", text)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]tracing.Config{
		"":                 {Endpoint: "http://collector:4318/base", Sample: 1},
		"tracing.endpoint": {Endpoint: "collector:4318"},
		"tracing.sample":   {Sample: 1.5},
	} {
		var f setting.Faults
		c.Check("tracing", &f)
		if err := f.Err(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want+": ") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
