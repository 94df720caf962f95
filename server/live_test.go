package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// running is a rig that listens.
type running struct {
	*rig
	stop func() // as SIGTERM does: returns at once
	done chan error
}

// run serves until the test ends, or stop is called and done is read.
func run(t testing.TB, options ...rigOption) *running {
	t.Helper()
	r := newRig(t, options...)
	if err := r.server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	live := &running{rig: r, stop: stop, done: make(chan error, 1)}
	finished := make(chan struct{})
	go func() {
		live.done <- r.server.Serve(ctx)
		close(finished)
	}()
	t.Cleanup(func() {
		stop()
		<-finished
	})
	return live
}

func (r *running) url(path string) string {
	return "http://" + r.server.Addresses().HTTP.String() + path
}

// dial makes a gRPC client of an address; plain text unless credentials are given.
func dial(t testing.TB, address net.Addr, c credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if c == nil {
		c = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+address.String(), grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (r *rig) requestV2(t testing.TB, token string) *fulciov2.CreateSigningCertificateRequest {
	t.Helper()
	q := &fulciov2.CreateSigningCertificateRequest{Key: &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulciov2.PublicKeyRequest{
		PublicKey: &fulciov2.PublicKey{Content: r.spki}, ProofOfPossession: r.prove(t, identitytest.Email),
	}}}
	if token != "" {
		q.Credentials = &fulciov2.Credentials{Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: token}}
	}
	return q
}

func TestTokenComesInRequestOrMetadata(t *testing.T) {
	t.Parallel()
	r := run(t)
	client := fulciov2.NewCAClient(dial(t, r.server.Addresses().GRPC, nil))
	old := fulciov1beta.NewCAClient(dial(t, r.server.Addresses().GRPC, nil))
	token := r.issuer.Token(t, nil)
	for name, c := range map[string]struct {
		body     string
		metadata []string
		want     codes.Code
	}{
		"body":           {body: token},
		"bearer":         {metadata: []string{"authorization", "bEARER " + token}},
		"older key":      {metadata: []string{"oidcidentitytoken", token}},
		"the body wins":  {body: "not.a.token", metadata: []string{"authorization", "Bearer " + token}, want: codes.Unauthenticated},
		"bearer is next": {metadata: []string{"authorization", "Bearer " + token, "oidcidentitytoken", "x"}},
		"none":           {want: codes.Unauthenticated},
	} {
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.Pairs(c.metadata...))
		if _, err := client.CreateSigningCertificate(ctx, r.requestV2(t, c.body)); status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if c.body == "" {
			_, err := old.CreateSigningCertificate(ctx, &fulciov1beta.CreateSigningCertificateRequest{
				PublicKey: &fulciov1beta.PublicKey{Content: []byte(r.spki)}, SignedEmailAddress: r.prove(t, identitytest.Email),
			})
			if status.Code(err) != c.want {
				t.Errorf("v1beta, %s: %v", name, err)
			}
		}
	}
}

func TestErrorsOverGRPC(t *testing.T) {
	t.Parallel()
	r := run(t)
	client := fulciov2.NewCAClient(dial(t, r.server.Addresses().GRPC, nil))
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "from-the-client")
	_, err := client.CreateSigningCertificate(ctx, r.requestV2(t, "a.b.c"), grpc.Header(&header))
	st := status.Convert(err)
	if st.Code() != codes.Unauthenticated || len(st.Details()) != 2 {
		t.Fatalf("%v", err)
	}
	info, _ := st.Details()[0].(*errdetails.ErrorInfo)
	request, _ := st.Details()[1].(*errdetails.RequestInfo)
	if info.GetDomain() != domain || info.GetReason() == "" || request.GetRequestId() != "from-the-client" || header.Get("x-request-id")[0] != "from-the-client" {
		t.Errorf("%v, header %v", st.Details(), header)
	}
	r.untouched(t)
	if denied := r.audit.of(audit.Denied); len(denied) != 1 || denied[0].RequestID != "from-the-client" || denied[0].RemoteAddr == "" {
		t.Errorf("audit: %+v", denied)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }
func (rawCodec) Name() string                    { return "proto" }

func TestUndecodableOverGRPCIsTheClients(t *testing.T) {
	t.Parallel()
	r := run(t)
	conn := dial(t, r.server.Addresses().GRPC, nil)
	var out []byte
	err := conn.Invoke(t.Context(), fulciov2.CA_CreateSigningCertificate_FullMethodName, []byte("\xff\xffsecret-text"), &out, grpc.ForceCodec(rawCodec{}))
	if status.Code(err) != codes.InvalidArgument || len(status.Convert(err).Details()) != 2 {
		t.Errorf("%v", err)
	}
	if denied := r.audit.of(audit.Denied); len(denied) != 1 || denied[0].Reason != fault.RequestMalformed {
		t.Errorf("audit: %+v", denied)
	}
	r.discreet(t, "secret-text")
	big := r.requestV2(t, "")
	big.GetPublicKeyRequest().GetPublicKey().Content = strings.Repeat("A", r.server.config.Limits.BodyBytes+1)
	if _, err := fulciov2.NewCAClient(conn).CreateSigningCertificate(t.Context(), big); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
	big.GetPublicKeyRequest().GetPublicKey().Content = strings.Repeat("A", 3*r.server.config.Limits.BodyBytes)
	if _, err := fulciov2.NewCAClient(conn).CreateSigningCertificate(t.Context(), big); status.Code(err) != codes.InvalidArgument || len(status.Convert(err).Details()) != 2 {
		t.Errorf("far over the limit: %v", err)
	}
	if denied := r.audit.of(audit.Denied); len(denied) != 3 || denied[2].Reason != fault.BodyTooLarge {
		t.Errorf("audit: %+v", denied)
	}
	r.untouched(t)
}

func TestReadsOverGRPC(t *testing.T) {
	t.Parallel()
	r := run(t)
	conn := dial(t, r.server.Addresses().GRPC, nil)
	bundle, err := fulciov2.NewCAClient(conn).GetTrustBundle(t.Context(), &fulciov2.GetTrustBundleRequest{})
	if err != nil || len(bundle.GetChains()) != 1 || len(bundle.GetChains()[0].GetCertificates()) != 2 {
		t.Errorf("%v %v", bundle, err)
	}
	about, err := fulciov2.NewCAClient(conn).GetConfiguration(t.Context(), &fulciov2.GetConfigurationRequest{})
	if err != nil || len(about.GetIssuers()) != 1 || about.GetIssuers()[0].GetIssuerUrl() != r.issuer.URL {
		t.Errorf("%v %v", about, err)
	}
	root, err := fulciov1beta.NewCAClient(conn).GetRootCertificate(t.Context(), &emptypb.Empty{})
	if err != nil || root.GetContentType() != pemChain {
		t.Errorf("%v %v", root, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	listed, err := stream.Recv()
	if err != nil || len(listed.GetListServicesResponse().GetService()) < 4 {
		t.Errorf("%v %v", listed, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}

func TestHealthFollowsTheDependencies(t *testing.T) {
	t.Parallel()
	broken := make(chan error, 1)
	current := error(nil)
	now := time.Now()
	clock := func() time.Time { now = now.Add(checkValid); return now } // each look is past the last result
	r := newRig(t, func(_ *Config, o *Options) {
		o.Now = clock
		o.Dependencies = []Dependency{
			{Name: "signer", Check: func(context.Context) error { return nil }},
			{Name: "log", Check: func(context.Context) error {
				select {
				case current = <-broken:
				default:
				}
				return current
			}},
		}
	})
	check := func(want int, wantText string, status healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		response := r.send(t, http.MethodGet, "/readyz?verbose", nil)
		if got := text(t, response); response.StatusCode != want || got != wantText {
			t.Errorf("%d %q, want %d %q", response.StatusCode, got, want, wantText)
		}
		for _, service := range []string{"", "dev.sigstore.fulcio.v2.CA", "dev.sigstore.fulcio.v1beta.CA"} {
			h, err := r.server.ready.health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || h.GetStatus() != status {
				t.Errorf("%q: %v %v, want %v", service, h, err, status)
			}
		}
		if live := r.send(t, http.MethodGet, "/healthz", nil); live.StatusCode != 200 {
			t.Errorf("healthz: %d", live.StatusCode)
		}
	}
	check(200, "signer: ok\nlog: ok\n", healthpb.HealthCheckResponse_SERVING)
	broken <- errBroken
	check(503, "signer: ok\nlog: failing\n", healthpb.HealthCheckResponse_NOT_SERVING)
	if got := text(t, r.send(t, http.MethodGet, "/readyz", nil)); got != "log: failing\n" {
		t.Errorf("%q", got)
	}
	broken <- nil
	check(200, "signer: ok\nlog: ok\n", healthpb.HealthCheckResponse_SERVING)
	if !strings.Contains(r.lines.String(), "a dependency fails") {
		t.Error("the failure isn't in the log")
	}
}

func TestHealthOverGRPC(t *testing.T) {
	t.Parallel()
	r := run(t)
	client := healthpb.NewHealthClient(dial(t, r.server.Addresses().GRPC, nil))
	watch, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "dev.sigstore.fulcio.v2.CA"})
	if err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, watch, healthpb.HealthCheckResponse_SERVING)
	list, err := client.List(t.Context(), &healthpb.HealthListRequest{})
	if err != nil || len(list.GetStatuses()) != 3 {
		t.Errorf("%v %v", list, err)
	}
	r.stop()
	awaitHealth(t, watch, healthpb.HealthCheckResponse_NOT_SERVING)
}

func awaitHealth(t *testing.T, watch healthpb.Health_WatchClient, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	for {
		got, err := watch.Recv()
		if err != nil {
			if want == healthpb.HealthCheckResponse_NOT_SERVING && !errors.Is(err, context.Canceled) {
				return // the server has closed the stream after its last word
			}
			t.Fatal(err)
		}
		if got.GetStatus() == want {
			return
		}
	}
}

// serverFiles writes a server certificate for 127.0.0.1 with this name.
func serverFiles(t testing.TB, dir, name string) (TLSConfig, *x509.CertPool) {
	t.Helper()
	made := catest.Server(t, name)
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c := TLSConfig{CertFile: setting.Path(filepath.Join(dir, "tls.crt")), KeyFile: setting.Path(filepath.Join(dir, "tls.key"))}
	for name, text := range map[setting.Path][]byte{
		c.CertFile: catest.PEM(made.Leaf), c.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(string(name)+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(string(name)+".new", string(name)); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(made.Leaf)
	return c, pool
}

func TestOneTLSPortServesEverything(t *testing.T) {
	t.Parallel()
	files, pool := serverFiles(t, t.TempDir(), "one")
	r := run(t, func(c *Config, _ *Options) { c.TLS = files })
	url := "https://" + r.server.Addresses().HTTP.String()
	for _, h2 := range []bool{false, true} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2}}
		response, err := client.Post(url+v2Path, "application/json", strings.NewReader(string(asJSON(t, r.bodyV2(t)))))
		if err != nil {
			t.Fatal(err)
		}
		if h2 != (response.ProtoMajor == 2) {
			t.Errorf("HTTP/%d", response.ProtoMajor)
		}
		chainOf(t, response)
		client.CloseIdleConnections()
	}
	for name, address := range map[string]net.Addr{"shared port": r.server.Addresses().HTTP, "own port": r.server.Addresses().GRPC} {
		conn := dial(t, address, credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}))
		if _, err := fulciov2.NewCAClient(conn).CreateSigningCertificate(t.Context(), r.requestV2(t, r.issuer.Token(t, nil))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		awaitHealth(t, watch, healthpb.HealthCheckResponse_SERVING)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("with open watches, drain: %v", err)
	}
	r.done <- nil
}

func TestPlainTextPortSpeaksGRPC(t *testing.T) {
	t.Parallel()
	r := run(t)
	conn := dial(t, r.server.Addresses().HTTP, nil)
	if _, err := fulciov2.NewCAClient(conn).CreateSigningCertificate(t.Context(), r.requestV2(t, r.issuer.Token(t, nil))); err != nil {
		t.Error(err)
	}
}

func TestChangedCertificateFilesAreServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files, _ := serverFiles(t, dir, "first")
	r := newRig(t)
	c, err := loadCertificates(files, r.server.with.Logger)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		t.Helper()
		got, err := c.get(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(got.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return parsed.DNSNames[0]
	}
	if got := name(); got != "first" {
		t.Errorf("%s", got)
	}
	serverFiles(t, dir, "second")
	if got := name(); got != "second" {
		t.Errorf("after a change: %s", got)
	}
	if shown := testutil.ToFloat64(c.expiry()); shown != float64(c.current.Leaf.NotAfter.Unix()) {
		t.Errorf("the metric says %v, the certificate ends %v", shown, c.current.Leaf.NotAfter)
	}
	if err := os.WriteFile(string(files.KeyFile), []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "second" {
		t.Errorf("after a bad change: %s", got)
	}
	if err := os.Remove(string(files.CertFile)); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "second" {
		t.Errorf("while it is away: %s", got)
	}
	serverFiles(t, dir, "third")
	if got := name(); got != "third" {
		t.Errorf("after mending: %s", got)
	}
	if err := os.Chmod(string(files.KeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := loadCertificates(files, r.server.with.Logger); err == nil {
		t.Error("a key that everybody may read was taken")
	}
}

func TestMetricsAreServedApart(t *testing.T) {
	t.Parallel()
	r := run(t)
	chainOf(t, r.postV2(t, r.bodyV2(t)))
	response, err := http.Get("http://" + r.server.Addresses().Metrics.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body := text(t, response)
	for _, want := range []string{`mayfly_requests_total{code="200",edge="rest",issuer_type="email",reason="OK",route="v2.CreateSigningCertificate"} 1`, `mayfly_request_seconds_count{stage="issue"} 1`, `mayfly_requests_in_flight`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	if other := r.send(t, http.MethodGet, "/metrics", nil); other.StatusCode != http.StatusNotFound {
		t.Errorf("the API serves /metrics: %d", other.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// get reads a URL with a client of its own.
func get(t testing.TB, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}
