package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

func TestEveryReasonHasOneStatusOnBothEdges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reason fault.Reason
		code   codes.Code
		http   int
	}{
		{fault.KeyWeak, codes.InvalidArgument, 400}, {fault.TokenExpired, codes.Unauthenticated, 401}, {fault.ClaimMissing, codes.PermissionDenied, 403},
		{fault.TokenTooLarge, codes.InvalidArgument, 413}, {fault.RateExceeded, codes.ResourceExhausted, 429}, {fault.LogUnavailable, codes.Unavailable, 503},
		{fault.DeadlineReached, codes.DeadlineExceeded, 504}, {fault.ClientGone, codes.Canceled, 499}, {fault.ReasonInternal, codes.Internal, 500},
		{"NOT_IN_THE_LIST", codes.Internal, 500}, {fault.RouteUnknown, codes.NotFound, 404}, {fault.MethodNotAllowed, codes.Unimplemented, 405},
	} {
		a := answerTo(fault.New(c.reason, "the text").With("claim", "email").Because(errBroken), "the-id")
		if a.code != c.code || a.http != c.http || status.Code(a.grpc()) != c.code {
			t.Errorf("%s: %v %d", c.reason, a.code, a.http)
		}
		var s spb.Status
		if err := protojson.Unmarshal(a.body(), &s); err != nil {
			t.Errorf("%s: %v: %s", c.reason, err, a.body())
		}
		if got := status.Convert(a.grpc()).Proto(); got.String() != s.String() {
			t.Errorf("%s: the edges differ:\n%s\n%s", c.reason, got, &s)
		}
		if c.http == 500 && (s.GetMessage() != "internal error" || strings.Contains(string(a.body()), "the text")) || strings.Contains(string(a.body()), "secret-cause") {
			t.Errorf("%s: tells too much: %s", c.reason, a.body())
		}
	}
	if a := answerTo(fault.New(fault.LogUnavailable, "the text").After(fault.NoRetry), "the-id"); strings.Contains(string(a.body()), "RetryInfo") {
		t.Errorf("a failure that ends at no known time asks to try again: %s", a.body())
	}
	for _, reason := range fault.Reasons() {
		if outcomes[reason.Kind()].http == 0 {
			t.Errorf("%s has no status", reason)
		}
	}
}

func TestFailuresOfOursTellNoCause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(context.Context) error
		status int
		reason fault.Reason
		logged string
	}{
		"unclassified": {func(context.Context) error { return fmt.Errorf("deep: %w", errBroken) }, 500, fault.ReasonInternal, "secret-cause"},
		"classified": {func(context.Context) error {
			return fault.New(fault.SignerUnavailable, "the signer is unavailable").Because(errBroken)
		}, 503, fault.SignerUnavailable, "secret-cause"},
		"panic":                  {func(context.Context) error { panic("secret-cause") }, 500, fault.ReasonInternal, "request.go"},
		"deadline":               {func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("signing: %w", ctx.Err()) }, 504, fault.DeadlineReached, "DEADLINE_EXCEEDED"},
		"deadline, unclassified": {func(ctx context.Context) error { <-ctx.Done(); return errBroken }, 504, fault.DeadlineReached, "secret-cause"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config, _ *Options) { c.RequestTimeout = 500 * time.Millisecond })
			r.ca.before = c.before
			body := r.bodyV2(t)
			response := r.postV2(t, body)
			b := readRefusal(t, response, c.status, c.reason)
			if strings.Contains(fmt.Sprint(b), "secret-cause") {
				t.Errorf("the cause got out: %+v", b)
			}
			id := response.Header.Get("X-Request-Id")
			if log := r.lines.String(); !strings.Contains(log, c.logged) || !strings.Contains(log, id) || !strings.Contains(log, `"level":"ERROR"`) {
				t.Errorf("the log: %s", log)
			}
			r.untouched(t)
			r.discreet(t, tokenIn(body))
		})
	}
}

func TestRefusalsAreRecordedAndDiscreet(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 17<<10)
	for name, c := range map[string]struct {
		change func(r *rig, body object)
		header []string
		status int
		reason fault.Reason
	}{
		"forged token": {func(_ *rig, b object) {
			setToken(b, "e30.secret-text.e30")
		}, nil, 401, fault.TokenAlgorithm},
		"big token":  {func(_ *rig, b object) { setToken(b, big) }, nil, 413, fault.TokenTooLarge},
		"big header": {func(_ *rig, b object) { delete(b, "credentials") }, []string{"Authorization", "Bearer " + big}, 413, fault.TokenTooLarge},
		"big key": {func(_ *rig, b object) {
			b["publicKeyRequest"] = object{"publicKey": object{"content": big}}
		}, nil, 413, fault.KeyTooLarge},
		"big body": {func(_ *rig, b object) { b["x"] = strings.Repeat(big, 4) }, nil, 413, fault.BodyTooLarge},
		"big proof": {func(r *rig, b object) {
			b["publicKeyRequest"] = object{"publicKey": object{"content": r.spki}, "proofOfPossession": []byte(big)}
		}, nil, 413, fault.ProofTooLarge},
		"no key":        {func(_ *rig, b object) { delete(b, "publicKeyRequest") }, nil, 400, fault.RequestMalformed},
		"empty request": {func(_ *rig, b object) { clear(b) }, nil, 401, fault.TokenMissing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			body := r.bodyV2(t)
			token := tokenIn(body)
			c.change(r, body)
			r.refused(t, r.postV2(t, body, c.header...), c.status, c.reason, token, "secret-text", big)
		})
	}
}

func TestRefusalStandsWithoutARecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.audit.broken = errBroken
	readRefusal(t, r.postV2(t, []byte(`{}`)), 401, fault.TokenMissing)
	if !strings.Contains(r.lines.String(), "could not be recorded") {
		t.Error("the log says nothing")
	}
	readRefusal(t, r.postV2(t, r.bodyV2(t)), 503, fault.AuditUnavailable)
	r.untouched(t)
}

func TestOverloadIsShedUnread(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(c *Config, _ *Options) { c.Limits.Issuances = 1 })
	r.ca.before = func(context.Context) error { arrived <- struct{}{}; <-release; return nil }
	body := r.bodyV2(t)
	done := make(chan *http.Response)
	go func() { done <- r.postV2(t, body) }()
	<-arrived
	response := r.postV2(t, body)
	if response.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", response.Header.Get("Retry-After"))
	}
	readRefusal(t, response, 503, fault.Overloaded)
	if got := r.send(t, http.MethodGet, "/api/v2/trustBundle", nil); got.StatusCode != 200 {
		t.Errorf("reads are refused too: %d", got.StatusCode)
	}
	close(release)
	chainOf(t, <-done)
	if n := len(r.audit.of(audit.Denied)); n != 0 {
		t.Errorf("%d denied records for shed load", n)
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	readRefusal(t, r.send(t, http.MethodGet, "/nowhere", nil), 404, fault.RouteUnknown)
	for path, method := range map[string]string{v2Path: "GET", v1Path: "PUT", "/api/v2/trustBundle": "POST", "/trusted_root.json": "POST", "/readyz": "DELETE"} {
		response := r.send(t, method, path, nil)
		if response.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", method, path)
		}
		readRefusal(t, response, 405, fault.MethodNotAllowed)
	}
	if index := text(t, r.send(t, http.MethodGet, "/", nil)); !strings.Contains(index, "POST  /api/v2/signingCert") || !strings.Contains(index, "/trusted_root.json") {
		t.Errorf("index: %s", index)
	}
}

func TestPanicOutsideTheAPI(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) {
		o.Mounts = map[string]http.Handler{"/broken/": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret-cause") })}
	})
	b := readRefusal(t, r.send(t, http.MethodGet, "/broken/x", nil), 500, fault.ReasonInternal)
	if b.Message != "internal error" || !strings.Contains(r.lines.String(), "abuse_test.go") && !strings.Contains(r.lines.String(), "request_test.go") {
		t.Errorf("%+v", b)
	}
}

// brokenAuditor panics.
type brokenAuditor struct{}

func (brokenAuditor) Record(context.Context, audit.Event) error { panic("secret-cause") }

func TestPanicOfTheAuditTrailIsOneRequestsFailure(t *testing.T) {
	t.Parallel()
	r := run(t, func(_ *Config, o *Options) { o.Auditor = brokenAuditor{} })
	readRefusal(t, r.postV2(t, []byte(`{}`)), 500, fault.ReasonInternal)
	client := fulciov2.NewCAClient(dial(t, r.server.Addresses().GRPC, nil))
	if _, err := client.CreateSigningCertificate(t.Context(), r.requestV2(t, "")); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret-cause") {
		t.Errorf("%v", err)
	}
	if n := strings.Count(r.lines.String(), `"msg":"panic"`); n != 2 {
		t.Errorf("%d panics in the log, want 2", n)
	}
}

func TestOneLogLineForARequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	body := r.bodyV2(t)
	chainOf(t, r.postV2(t, body, "X-Request-Id", "the-id"))
	for _, want := range []string{`"request_id":"the-id"`, `"route":"v2.CreateSigningCertificate"`, `"edge":"rest"`, `"status":"OK"`, `"duration":`, `"issuer_type":"email"`, `"san_kind":"email"`} {
		if !strings.Contains(r.lines.String(), want) {
			t.Errorf("no %s in %s", want, r.lines)
		}
	}
	if n := strings.Count(r.lines.String(), `"msg":"request"`); n != 1 {
		t.Errorf("%d lines", n)
	}
	r.discreet(t, tokenIn(body), "alice@example.com")
}

func TestConfigCheckFindsEachFault(t *testing.T) {
	t.Parallel()
	good := DefaultConfig()
	var none setting.Faults
	if good.Check("", &none); none.Len() != 0 {
		t.Fatalf("the default: %v", none.Err())
	}
	for want, change := range map[string]func(*Config){
		"http_address: required":         func(c *Config) { c.HTTPAddress = "" },
		"grpc_address:":                  func(c *Config) { c.GRPCAddress = "localhost" },
		"metrics_address: is the":        func(c *Config) { c.MetricsAddress = c.HTTPAddress },
		"public_url:":                    func(c *Config) { c.PublicURL = "ftp://x" },
		"tls.key_file: required":         func(c *Config) { c.TLS.CertFile = "x" },
		"tls.cert_file: required":        func(c *Config) { c.TLS.KeyFile = "x" },
		"request_timeout:":               func(c *Config) { c.RequestTimeout = 0 },
		"shutdown_grace:":                func(c *Config) { c.ShutdownGrace = -1 },
		"shutdown_delay:":                func(c *Config) { c.ShutdownDelay = time.Hour },
		"cors_origins[0]:":               func(c *Config) { c.CORSOrigins = []string{"*", "https://x"} },
		"cors_origins[1]: \"https://x/":  func(c *Config) { c.CORSOrigins = []string{"https://y", "https://x/p"} },
		"limits.body_bytes:":             func(c *Config) { c.Limits.BodyBytes = 0 },
		"limits.token_bytes:":            func(c *Config) { c.Limits.TokenBytes = 1 << 20 },
		"limits.token_bytes: 16384 fits": func(c *Config) { c.Limits.BodyBytes, c.Limits.HeaderBytes = 8<<10, 8<<10 },
		"limits.token_bytes: 16385 is":   func(c *Config) { c.Limits.TokenBytes = 16385 }, // it would have no effect
		"limits.header_timeout: 20s has": func(c *Config) { c.Limits.HeaderTimeout = 20 * time.Second },
		"limits.write_timeout:":          func(c *Config) { c.Limits.WriteTimeout = 0 },
		"limits.stream_time:":            func(c *Config) { c.Limits.StreamTime = 0 },
		"metrics_hosts[0]:":              func(c *Config) { c.MetricsHosts = []string{"http://Mayfly:2112"} },
		"limits.idle_timeout:":           func(c *Config) { c.Limits.IdleTimeout = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		var f setting.Faults
		c.Check("", &f)
		if f.Len() != 1 || !strings.HasPrefix(f.Err().Error(), want) {
			t.Errorf("want one fault %q, got %v", want, f.Err())
		}
	}
	if _, err := New(t.Context(), Config{}, Options{}); err == nil {
		t.Error("an empty configuration was taken")
	}
	if _, err := New(t.Context(), good, Options{}); err == nil {
		t.Error("a server without a CA was made")
	}
}
