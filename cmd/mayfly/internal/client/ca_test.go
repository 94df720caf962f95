package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var aliceClaims = map[string]any{"iss": "https://issuer.example.com", "sub": "alice", "email": "alice@example.com"}

// alice is her token and a fresh key with what is sent for them.
func alice(t *testing.T, csr bool) (*Token, *Key, Submission) {
	t.Helper()
	token, err := ParseToken(clienttest.Token(t, aliceClaims))
	if err != nil {
		t.Fatal(err)
	}
	key, err := GenerateKey(DefaultKeyType)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Submit(token, key, csr)
	if err != nil {
		t.Fatal(err)
	}
	return token, key, s
}

func trustOf(t *testing.T, ca *clienttest.CA) *Trust {
	t.Helper()
	trust, err := ParseTrust(ca.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func TestCertificateOverRESTAndGRPC(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	over, err := DialGRPC(serveGRPC(t, &grpcCA{ca: ca}), false, Retry{})
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	for name, c := range map[string]CA{"REST": &REST{URL: ca.URL + "/", HTTP: newHTTP(t)}, "gRPC": over} {
		for _, csr := range []bool{false, true} {
			token, key, s := alice(t, csr)
			chain, err := c.Certificate(t.Context(), s)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			v, err := trustOf(t, ca).Verify(chain[0], key, token, false, time.Now())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			index, _ := v.SCTs[0].SCT.LeafIndex()
			if len(v.Chain) != 3 || len(v.SCTs) != 1 || index != 258 {
				t.Errorf("%s: %d certificates, %d SCTs, leaf %d", name, len(v.Chain), len(v.SCTs), index)
			}
		}
	}
}

// rpcError is the body of a refusal as the CA writes it.
func rpcError(code int, message, reason, id string) string {
	body, _ := json.Marshal(map[string]any{"code": code, "message": message, "details": []any{
		map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "mayfly.dev"},
		map[string]any{"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": id},
	}})
	return string(body)
}

func TestRESTFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status   int
		header   [2]string
		body     string
		kind     Kind
		requests int
		waits    []time.Duration // nil: not compared
		text     string
	}{
		"refused": {401, [2]string{}, rpcError(16, "the token's audience is wrong", "TOKEN_AUDIENCE", "id-1"), Refused, 1, nil,
			"the CA refused the request (HTTP 401, TOKEN_AUDIENCE): the token's audience is wrong\nrequest id id-1"},
		"malformed": {400, [2]string{"X-Request-Id", "id-2"}, rpcError(3, "m", "", "other"), Refused, 1, nil,
			"the CA refused the request (HTTP 400): m\nrequest id id-2"},
		"too large":    {413, [2]string{}, "", Refused, 1, nil, "the CA refused the request (HTTP 413)"},
		"rate limited": {429, [2]string{"Retry-After", "7"}, "", Unavailable, 4, []time.Duration{7 * time.Second, 7 * time.Second, 7 * time.Second}, "the CA could not answer (HTTP 429)"},
		"by a date":    {503, [2]string{"Retry-After", "Thu, 01 Jan 2026 00:00:09 GMT"}, "", Unavailable, 4, []time.Duration{9 * time.Second, 9 * time.Second, 9 * time.Second}, "the CA could not answer (HTTP 503)"},
		"too long":     {503, [2]string{"Retry-After", "3600"}, "", Unavailable, 1, []time.Duration{}, "the CA could not answer (HTTP 503)"},
		"ours":         {500, [2]string{}, rpcError(13, "internal error", "INTERNAL", "id-3"), Unavailable, 4, nil, "the CA could not answer (HTTP 500, INTERNAL): internal error\nrequest id id-3"},
		"a proxy":      {502, [2]string{}, "<html>\n<b>Bad Gateway</b>" + strings.Repeat("x", 1000), Unavailable, 4, nil, "the CA could not answer (HTTP 502): <html> <b>Bad Gateway</b>xxx"},
		"redirect":     {307, [2]string{"Location", "https://evil.example/"}, "", Refused, 1, nil, `the CA answered with a redirect to "https://evil.example/"`},
		"created":      {201, [2]string{}, "{}", Refused, 1, nil, "the CA refused the request (HTTP 201)"},
		"not JSON":     {200, [2]string{}, "<html>", Failed, 1, nil, "the CA's answer can't be read: it is not JSON"},
		"no chain":     {200, [2]string{}, "{}", Failed, 1, nil, "the CA's answer can't be read: it holds no certificate"},
		"empty chain":  {200, [2]string{}, `{"signedCertificateEmbeddedSct":{"chain":{"certificates":[]}}}`, Failed, 1, nil, "unfit number"},
		"not PEM":      {200, [2]string{}, `{"signedCertificateEmbeddedSct":{"chain":{"certificates":["x"]}}}`, Failed, 1, nil, "something other"},
		"a key": {200, [2]string{}, `{"signedCertificateEmbeddedSct":{"chain":{"certificates":["-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"]}}}`,
			Failed, 1, nil, "something other"},
		"not DER": {200, [2]string{}, `{"signedCertificateEmbeddedSct":{"chain":{"certificates":["-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]}}}`,
			Failed, 1, nil, "malformed certificate"},
		"endless": {200, [2]string{}, `"` + strings.Repeat("a", maxAnswer) + `"`, Failed, 1, nil, "more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := clienttest.New(t)
			ca.Set(clienttest.Knobs{Answer: func(w http.ResponseWriter, _ *http.Request) bool {
				if c.header[0] != "" {
					w.Header().Set(c.header[0], c.header[1])
				}
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
				return true
			}})
			waits := &instant{waits: []time.Duration{}}
			now := func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }
			rest := &REST{URL: ca.URL, HTTP: newHTTP(t), Retry: Retry{Wait: waits.wait, Now: now}}
			_, _, s := alice(t, false)
			_, err := rest.Certificate(t.Context(), s)
			var e *Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v\nwant kind %d and %s", err, c.kind, c.text)
			}
			if strings.Contains(err.Error(), s.GetCredentials().GetOidcIdentityToken()) || len(err.Error()) > 1000 {
				t.Errorf("the error holds the token or is too long: %v", err)
			}
			if ca.Requests() != c.requests {
				t.Errorf("%d requests, want %d", ca.Requests(), c.requests)
			}
			if c.waits != nil && fmt.Sprint(waits.waits) != fmt.Sprint(c.waits) {
				t.Errorf("waited %v, want %v", waits.waits, c.waits)
			}
		})
	}
}

func TestRESTRecoversAfterRetry(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	ids := map[string]bool{}
	ca.Set(clienttest.Knobs{Answer: func(w http.ResponseWriter, r *http.Request) bool {
		ids[r.Header.Get("X-Request-Id")] = true
		if ca.Requests() < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}})
	waits := &instant{}
	var said []string
	rest := &REST{URL: ca.URL, HTTP: newHTTP(t), Retry: Retry{Wait: waits.wait, Say: func(s string) { said = append(said, s) }}}
	_, _, s := alice(t, false)
	if _, err := rest.Certificate(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if ca.Requests() != 3 || len(said) != 2 || len(ids) != 1 {
		t.Errorf("%d requests with %d ids, said %v", ca.Requests(), len(ids), said)
	}
	for i, d := range waits.waits {
		if full := firstWait << i; d < full/2 || d > full {
			t.Errorf("wait %d is %s", i, d)
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil { // nobody is there now
		t.Fatal(err)
	}
	_, _, s := alice(t, false)
	waits := &instant{}
	over, err := DialGRPC(address, false, Retry{Wait: waits.wait})
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	for name, ca := range map[string]CA{"REST": &REST{URL: "http://" + address, HTTP: newHTTP(t)}, "gRPC": over} {
		var e *Error
		if _, err := ca.Certificate(t.Context(), s); !errors.As(err, &e) || e.Kind != Unavailable {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDeadlineAndInterrupt(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	asked := make(chan struct{}, 2)
	ca.Set(clienttest.Knobs{Answer: func(_ http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the client has gone
		asked <- struct{}{}
		<-r.Context().Done()
		return true
	}})
	_, _, s := alice(t, false)
	rest := &REST{URL: ca.URL, HTTP: newHTTP(t)}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var e *Error
	if _, err := rest.Certificate(ctx, s); !errors.As(err, &e) || e.Kind != Unavailable || !strings.Contains(err.Error(), "in time") {
		t.Errorf("deadline: %v", err)
	}
	select {
	case <-asked:
	default: // it ended before it was asked
	}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := rest.Certificate(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupt: %v", err)
	}
}

// grpcCA answers over gRPC: with the errors in order, then with certificates.
type grpcCA struct {
	fulciov2.UnimplementedCAServer
	ca       *clienttest.CA
	errs     []error
	requests int
}

func (g *grpcCA) CreateSigningCertificate(_ context.Context, r *fulciov2.CreateSigningCertificateRequest) (*fulciov2.SigningCertificate, error) {
	g.requests++
	if len(g.errs) > 0 {
		err := g.errs[0]
		g.errs = g.errs[1:]
		return nil, err
	}
	chain, err := g.ca.Issue(r.GetCredentials().GetOidcIdentityToken(), []byte(r.GetPublicKeyRequest().GetPublicKey().GetContent()),
		r.GetPublicKeyRequest().GetProofOfPossession(), r.GetCertificateSigningRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &fulciov2.SigningCertificate{Certificate: &fulciov2.SigningCertificate_SignedCertificateEmbeddedSct{
		SignedCertificateEmbeddedSct: &fulciov2.SigningCertificateEmbeddedSCT{Chain: &fulciov2.CertificateChain{Certificates: chain}},
	}}, nil
}

func serveGRPC(t *testing.T, ca fulciov2.CAServer) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	fulciov2.RegisterCAServer(server, ca)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

func TestGRPCFaults(t *testing.T) {
	t.Parallel()
	denied, err := status.New(codes.PermissionDenied, "the email is not verified").WithDetails(
		&errdetails.ErrorInfo{Reason: "EMAIL_UNVERIFIED"}, &errdetails.RequestInfo{RequestId: "id-9"})
	if err != nil {
		t.Fatal(err)
	}
	busy, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		errs     []error
		kind     Kind
		requests int
		waited   time.Duration
		text     string
	}{
		"denied":   {[]error{denied.Err()}, Refused, 1, 0, "the CA refused the request (gRPC PermissionDenied, EMAIL_UNVERIFIED): the email is not verified\nrequest id id-9"},
		"busy":     {[]error{busy.Err(), busy.Err(), busy.Err(), busy.Err()}, Unavailable, 4, 9 * time.Second, "the CA could not answer (gRPC ResourceExhausted): slow down"},
		"recovers": {[]error{busy.Err()}, 0, 2, 3 * time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &grpcCA{ca: clienttest.New(t), errs: c.errs}
			waits := &instant{}
			over, err := DialGRPC(serveGRPC(t, g), false, Retry{Wait: waits.wait})
			if err != nil {
				t.Fatal(err)
			}
			defer over.Close()
			_, _, s := alice(t, false)
			_, err = over.Certificate(t.Context(), s)
			var e *Error
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			var waited time.Duration
			for _, d := range waits.waits {
				waited += d
			}
			if g.requests != c.requests || waited != c.waited {
				t.Errorf("%d requests, waited %s", g.requests, waited)
			}
		})
	}
}

func TestGRPCAddress(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{
		"127.0.0.1:5554": true, "[::1]:5554": true, "localhost:1": true, "ca.example.com:443": true,
		"https://ca.example.com:443": true, "http://127.0.0.1:1": true,
		"http://ca.example.com:80": false, "ca.example.com": false, "": false, "ftp://a:1": false, "ca:1/x?y": false,
	} {
		over, err := DialGRPC(address, false, Retry{})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err == nil {
			if err := over.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"signedCertificateEmbeddedSct":{"chain":{"certificates":["-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]}}}`))
	f.Add([]byte(rpcError(3, "m", "R", "id")))
	f.Fuzz(func(t *testing.T, body []byte) {
		if chain, err := parseAnswer(body); err == nil && (len(chain) == 0 || chain[0] == nil) {
			t.Error("an empty chain is accepted")
		}
		if fault("the CA", &http.Response{StatusCode: http.StatusBadRequest}, body) == nil {
			t.Error("a refusal is no error")
		}
	})
}
