package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Server over a real issuer, verifier, key policy, CA and log.
type rig struct {
	server   *Server
	issuer   *identitytest.Issuer
	verifier *identity.Verifier
	ca       *heldCA
	log      *countedLog
	audit    *trail
	lines    *catest.Lines
	registry *prometheus.Registry
	key      *ecdsa.PrivateKey
	spki     string // PEM of key's public half
}

type rigOption func(*Config, *Options)

func newRig(t testing.TB, options ...rigOption) *rig {
	t.Helper()
	r := &rig{issuer: identitytest.New(t), audit: &trail{}, lines: &catest.Lines{}, registry: prometheus.NewRegistry()}
	r.verifier = r.issuer.Verifier(t)
	r.key, r.spki = newKey(t)
	r.log = newLog(t)
	r.ca = &heldCA{Issuer: newCA(t, r.log, r.audit)}
	keys, err := proof.NewPolicy()
	if err != nil {
		t.Fatal(err)
	}
	c := DefaultConfig()
	c.HTTPAddress, c.GRPCAddress, c.MetricsAddress = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.RateLimits = RateLimits{} // but for the tests of them
	o := Options{
		Identity: r.verifier, Keys: keys, CA: r.ca, Auditor: r.audit, Metrics: r.registry,
		Served: Served{Documents: Documents{TrustedRoot: []byte(`{"mediaType":"root"}`), SigningConfig: []byte(`{"mediaType":"signing"}`), TrustConfig: []byte(`{"mediaType":"trust"}`)}},
		Logger: slog.New(slog.NewJSONHandler(r.lines, &slog.HandlerOptions{Level: slog.LevelDebug})), Now: time.Now,
	}
	for _, option := range options {
		option(&c, &o)
	}
	if r.server, err = New(t.Context(), c, o); err != nil {
		t.Fatal(err)
	}
	return r
}

// prepare readies c, and what change makes of that which is served; nil leaves it as it is.
func (r *rig) prepare(t testing.TB, c Config, change func(*Served)) (commit func()) {
	t.Helper()
	next := r.server.routes.Load().served
	if change != nil {
		change(&next)
	}
	commit, err := r.server.Prepare(c, next)
	if err != nil {
		t.Fatal(err)
	}
	return commit
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key := catest.Key(t)
	return key, spkiPEM(t, key.Public())
}

func spkiPEM(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func newCA(t testing.TB, log ctlog.Log, auditor audit.Recorder) *ca.Issuer {
	t.Helper()
	made, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: filepath.Join(t.TempDir(), "ca"), Organization: "Example", Now: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c := ca.DefaultConfig()
	c.Authority = authority.Config{Chain: setting.Path(made.Chain), Key: setting.KeyRef("file:" + made.IssuingKey)}
	issuing, err := authority.Load(t.Context(), c.Authority, authority.LoadOptions{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := ctlog.NewPolicy([]ctlog.Log{log}, ctlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ca.New(c, ca.Options{Authorities: authority.Single(issuing), Log: policy, Auditor: auditor})
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

// countedLog counts what is appended.
type countedLog struct {
	ctlogtest.Honest
	entries atomic.Int64
}

func newLog(t testing.TB) *countedLog {
	t.Helper()
	signer := ctlogtest.NewSigner(t)
	spki := signer.SPKI(t)
	return &countedLog{Honest: ctlogtest.Honest{Signer: signer, About: ctlog.Description{
		ID: sha256.Sum256(spki), SPKI: spki, URL: "http://log.test", Start: time.Now().Add(-time.Hour),
	}}}
}

func (l *countedLog) Submit(ctx context.Context, c ctlog.Chain) (ctlog.SCT, error) {
	l.entries.Add(1)
	return l.Honest.Submit(ctx, c)
}

// heldCA is a real CA that a test can hold up, break, or count.
type heldCA struct {
	*ca.Issuer
	calls  atomic.Int64
	before func(ctx context.Context) error
}

func (g *heldCA) Issue(ctx context.Context, who identity.Principal, key proof.Key) (*ca.Certificate, error) {
	g.calls.Add(1)
	if g.before != nil {
		if err := g.before(ctx); err != nil {
			return nil, err
		}
	}
	return g.Issuer.Issue(ctx, who, key)
}

// trail is an audit trail in memory.
type trail struct {
	mu     sync.Mutex
	events []audit.Event
	broken error
}

func (a *trail) Record(_ context.Context, e audit.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	a.events = append(a.events, e)
	return nil
}

func (a *trail) of(kind audit.Type) (found []audit.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		if e.Type == kind {
			found = append(found, e)
		}
	}
	return found
}

// prove signs a challenge with the rig's key.
func (r *rig) prove(t testing.TB, challenge string) []byte {
	t.Helper()
	return sign(t, r.key, challenge)
}

// sign proves possession of a key, with the hash that goes with it.
func sign(t testing.TB, key crypto.Signer, message string) []byte {
	t.Helper()
	hash := crypto.SHA256
	switch k := key.(type) {
	case ed25519.PrivateKey:
		hash = 0
	case *ecdsa.PrivateKey:
		if bits := k.Params().BitSize; bits > 256 {
			hash = map[int]crypto.Hash{384: crypto.SHA384, 521: crypto.SHA512}[bits]
		}
	}
	sig, err := crypto.SignMessage(key, rand.Reader, []byte(message), hash)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// object is JSON that a test changes before it is sent.
type object = map[string]any

// bodyV2 is a good v2 request with the token in it.
func (r *rig) bodyV2(t testing.TB) object {
	t.Helper()
	return object{
		"credentials": object{"oidcIdentityToken": r.issuer.Token(t, nil)},
		"publicKeyRequest": object{
			"publicKey":         object{"algorithm": "ECDSA", "content": r.spki},
			"proofOfPossession": r.prove(t, identitytest.Email),
		},
	}
}

// tokenIn is the token of a v2 request, and setToken gives it another.
func tokenIn(body object) string { return body["credentials"].(object)["oidcIdentityToken"].(string) }

func setToken(body object, token string) object {
	body["credentials"] = object{"oidcIdentityToken": token}
	return body
}

// keyIn is the key and the proof of a v2 request, to be changed.
func keyIn(body object) object { return body["publicKeyRequest"].(object) }

// bodyV1 is a good v1 request; the token goes in the header.
func (r *rig) bodyV1(t testing.TB) object {
	t.Helper()
	return object{
		"publicKey":          object{"algorithm": "ecdsa", "content": []byte(r.spki)},
		"signedEmailAddress": r.prove(t, identitytest.Email),
	}
}

// postV1 sends a v1 request with a good token.
func (r *rig) postV1(t testing.TB, body any) *http.Response {
	t.Helper()
	return r.send(t, http.MethodPost, v1Path, body, "Authorization", "Bearer "+r.issuer.Token(t, nil))
}

// postV2 sends a v2 request.
func (r *rig) postV2(t testing.TB, body any, header ...string) *http.Response {
	t.Helper()
	return r.send(t, http.MethodPost, v2Path, body, header...)
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	if b, ok := v.([]byte); ok {
		return b
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// send makes one REST request in memory.
func (r *rig) send(t testing.TB, method, path string, body any, header ...string) *http.Response {
	t.Helper()
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(asJSON(t, body))
	}
	request := httptest.NewRequestWithContext(t.Context(), method, path, reader)
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	r.server.serveHTTP(recorder, request)
	return recorder.Result()
}

func text(t testing.TB, response *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// chainOf is the certificates of a v2 answer.
func chainOf(t testing.TB, response *http.Response) []string {
	t.Helper()
	body := text(t, response)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %s", response.StatusCode, body)
	}
	var v struct {
		SignedCertificateEmbeddedSct struct {
			Chain struct{ Certificates []string }
		}
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatal(err)
	}
	return v.SignedCertificateEmbeddedSct.Chain.Certificates
}

func parseCertificate(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// errorBody is the JSON of a refusal.
type errorBody struct {
	Code    int
	Message string
	Details []struct {
		Type       string `json:"@type"`
		Reason     string
		Domain     string
		Metadata   map[string]string
		RequestID  string `json:"requestId"`
		RetryDelay string `json:"retryDelay"`
	}
}

// refused is the common oracle: the status and reason; nothing signed, nothing
// logged, at most one record of it, no secret in any line.
func (r *rig) refused(t testing.TB, response *http.Response, status int, reason fault.Reason, secrets ...string) errorBody {
	t.Helper()
	b := readRefusal(t, response, status, reason)
	r.untouched(t)
	if denied := r.audit.of(audit.Denied); len(denied) != 1 || denied[0].Reason != reason || denied[0].RequestID != response.Header.Get("X-Request-Id") {
		t.Errorf("audit: %+v, want one denied record with %s", denied, reason)
	}
	r.discreet(t, secrets...)
	return b
}

// untouched fails when anything was signed or logged: no signature is made
// without an intent on record.
func (r *rig) untouched(t testing.TB) {
	t.Helper()
	if n := len(r.audit.of(audit.Intent)); n != 0 {
		t.Errorf("%d intents on record, want none", n)
	}
	if n := r.log.entries.Load(); n != 0 {
		t.Errorf("%d entries in the log, want none", n)
	}
}

// discreet fails when a secret is in the log.
func (r *rig) discreet(t testing.TB, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		if secret != "" && strings.Contains(r.lines.String(), secret) {
			t.Errorf("the log holds %.20q…", secret)
		}
	}
}

func readRefusal(t testing.TB, response *http.Response, status int, reason fault.Reason) errorBody {
	t.Helper()
	body := text(t, response)
	var b errorBody
	if err := json.Unmarshal([]byte(body), &b); err != nil {
		t.Fatalf("status %d, body %q: %v", response.StatusCode, body, err)
	}
	if response.StatusCode != status || len(b.Details) < 2 || b.Details[0].Reason != string(reason) {
		t.Fatalf("status %d, want %d and %s: %s", response.StatusCode, status, reason, body)
	}
	id := response.Header.Get("X-Request-Id")
	if id == "" || b.Details[1].RequestID != id {
		t.Errorf("request id %q in the header, %q in the body", id, b.Details[1].RequestID)
	}
	return b
}

var errBroken = errors.New("broken by a test: secret-cause")
