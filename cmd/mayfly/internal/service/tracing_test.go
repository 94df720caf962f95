package service

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestTraces: a request by either edge has its steps as spans, a refusal its reason, and
// nothing in them says who asked. All has been sent when the service has ended.
func TestTraces(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var raw bytes.Buffer
	var spans []*tracepb.Span
	to := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		unpacked, err := gzip.NewReader(q.Body)
		if err != nil {
			t.Error(err)
			return
		}
		data, err := io.ReadAll(unpacked)
		var m collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(data, &m) != nil {
			t.Errorf("no request of OTLP: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		raw.Write(data)
		for _, of := range m.GetResourceSpans() {
			for _, s := range of.GetScopeSpans() {
				spans = append(spans, s.GetSpans()...)
			}
		}
	}))
	defer to.Close()
	r := newRig(t, func(_ *rig, c *config.Config) { c.Tracing.Endpoint, c.Tracing.Sample = to.URL, 1 })
	r.issues(t, "traced", r.signingRequest(t, r.token(t, nil)))
	r.refusesToken(t, "audience", r.token(t, map[string]any{"aud": "another"}), fault.TokenAudience)
	wrong := r.signingRequest(t, r.token(t, nil))
	digest := sha256.Sum256(nil)
	wrong.proof = prove(t, newKey(t), string(digest[:]))
	r.refuses(t, "proof", wrong, fault.ProofInvalid)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	mu.Lock()
	defer mu.Unlock()
	byID := map[string]*tracepb.Span{}
	for _, s := range spans {
		byID[hex.EncodeToString(s.GetSpanId())] = s
	}
	below := map[*tracepb.Span][]string{}
	for _, s := range spans {
		if parent := byID[hex.EncodeToString(s.GetParentSpanId())]; parent != nil {
			name := s.GetName()
			if why := s.GetStatus().GetMessage(); why != "" {
				name += "!" + why
			}
			below[parent] = append(below[parent], name)
		}
	}
	var found []string
	for s, steps := range below {
		if s.GetName() == "issue" {
			found = append(found, strings.Join(steps, " "))
			continue
		}
		about := map[string]string{}
		for _, a := range s.GetAttributes() {
			about[a.GetKey()] = a.GetValue().GetStringValue()
		}
		if id := about["mayfly.request_id"]; !strings.HasPrefix(id, "request-"+about["mayfly.edge"]) || s.GetKind() != tracepb.Span_SPAN_KIND_SERVER {
			t.Errorf("a request's span: %v", s)
		}
		known := about["mayfly.issuer"] == r.issuer.URL
		found = append(found, s.GetName()+" "+about["mayfly.reason"]+map[bool]string{true: " known", false: ""}[known]+": "+strings.Join(steps, " "))
	}
	slices.Sort(found)
	var want []string
	for range edges {
		want = append(want, "profile admission audit sign_precertificate "+r.state().logs.shards[0].config.URL+" log sign check record")
	}
	for _, method := range []string{"v1beta", "v2"} {
		method += ".CreateSigningCertificate "
		for range 2 { // edges
			want = append(want, method+"OK known: authenticate prove issue", method+"TOKEN_AUDIENCE: authenticate!TOKEN_AUDIENCE", method+"PROOF_INVALID known: authenticate prove!PROOF_INVALID")
		}
	}
	if slices.Sort(want); !slices.Equal(found, want) {
		t.Errorf("spans:\n%s\nexpected:\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
	for _, private := range append(slices.Clone(r.tokens), append(r.private, identitytest.Email)...) {
		if private != "" && bytes.Contains(raw.Bytes(), []byte(private)) {
			t.Errorf("%.40s is in what was sent", private)
		}
	}
}
