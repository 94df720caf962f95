package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// A service's life: its start, its end, its routes.

// ready is what /readyz?verbose says.
func (r *rig) readiness(t *testing.T) (int, string) {
	t.Helper()
	code, text, err := get(t.Context(), r.url+"/readyz?verbose")
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text)
}

func (r *rig) awaitReadiness(t *testing.T, want string) {
	t.Helper()
	poll(t, want, func() bool {
		_, text := r.readiness(t)
		return deciding(text) == want
	})
}

// deciding is /readyz?verbose without what only informs: the details, and the
// lines about the configuration, timestamps, the index, alerts and the log to come.
func deciding(page string) string {
	var kept strings.Builder
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "configuration: ") && !strings.HasPrefix(line, "next log: ") &&
			!strings.HasPrefix(line, "timestamps: ") && !strings.HasPrefix(line, "index: ") && !strings.HasPrefix(line, "alerts: ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestIssuerUnreachableAtStart(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(r *rig, _ *config.Config) {
		r.issuer.Break(issuerDiscovery, failing(http.StatusServiceUnavailable))
	})
	r.awaitReadiness(t, "authority: ok\naudit: ok\nissuers: failing\nlog: ok\n")
	if code, _ := r.readiness(t); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d", code)
	}
	if code, _, err := get(t.Context(), r.url+"/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("/healthz: %d, %v", code, err)
	}
	r.refuses(t, "no keys yet", r.signingRequest(t, r.token(t, nil)), fault.IssuerUnavailable)
	r.issuer.Break(issuerDiscovery, nil)
	r.awaitReadiness(t, "authority: ok\naudit: ok\nissuers: ok\nlog: ok\n")
	r.issues(t, "recovered", r.signingRequest(t, r.token(t, nil)))
}

// One issuer that is down is no reason to send the others' clients away, and a warning.
func TestOneOfTwoIssuersUnreachable(t *testing.T) {
	t.Parallel()
	down := startIssuer(t)
	down.Break(issuerDiscovery, down.Hang())
	r := newRig(t, func(_ *rig, c *config.Config) { c.Issuers = append(c.Issuers, down.Config()) })
	r.issues(t, "of the issuer that is up", r.signingRequest(t, r.token(t, nil)))
	warning := func(of, why string) string {
		return "authority: ok\naudit: ok\nissuers: warning: " + of + why + "\nlog: ok\n"
	}
	down.Break(issuerDiscovery, failing(http.StatusServiceUnavailable))
	r.awaitReadiness(t, warning(down.URL, ": its tokens can't be verified, for want of its keys (bad answer)"))
	if code, text := r.readiness(t); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, text)
	}
	if scrape := r.scrape(t); scrape["mayfly_dependency_working"] != 4 || scrape["mayfly_dependency_warning"] != 1 {
		t.Errorf("of the dependencies %v work, %v warn", scrape["mayfly_dependency_working"], scrape["mayfly_dependency_warning"])
	}
	poll(t, "a line in the log", func() bool { return strings.Contains(r.lines.String(), "a dependency works, with a warning") })
	down.Break(issuerDiscovery, nil)
	r.awaitReadiness(t, "authority: ok\naudit: ok\nissuers: ok\nlog: ok\n")
	poll(t, "another line", func() bool { return strings.Contains(r.lines.String(), "a dependency's warning has ended") })
}

// Tokens of an issuer that hangs, more than the requests that are served at once,
// leave room for those of others: each of a healthy issuer's gets its certificate.
func TestHangingIssuerLeavesRoom(t *testing.T) {
	t.Parallel()
	const tokens, most = 300, 256
	down := startIssuer(t)
	down.Break(issuerDiscovery, down.Hang())
	r := newRig(t, func(_ *rig, c *config.Config) {
		c.Issuers = append(c.Issuers, down.Config())
		c.Server.Limits.Issuances = most
		c.Server.RateLimits.PerPrincipal.Rate, c.Server.RateLimits.PerPrincipal.Burst = 1e6, 1e6 // one identity asks as often as it can
	})
	hanging := r.signingRequest(t, down.Token(t, map[string]any{"canary": canary}))
	var all sync.WaitGroup
	var waited, refused atomic.Int64
	atOnce := make(chan struct{}, 200) // so that only those that wait could fill the places of others
	for n := range tokens {
		all.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			a := r.ask(t, edges[n%2], hanging)
			if a.reason != fault.IssuerUnavailable {
				t.Errorf("%s: %s %q", a.edge, a.reason, a.message)
			}
			if !strings.HasPrefix(a.message, "too many requests wait") {
				waited.Add(1)
			}
			refused.Add(1)
		})
	}
	for healthy := 0; refused.Load() < tokens; healthy++ {
		r.issues(t, fmt.Sprint("of the healthy issuer, ", healthy), r.signingRequest(t, r.token(t, nil)))
	}
	all.Wait()
	if n := waited.Load(); n == 0 || n > most/4 {
		t.Errorf("%d tokens waited, want a quarter of %d at most", n, most)
	}
}

// A service that is told to stop under load finishes what it began: a client
// has its certificate or a refusal, and each certificate is on record and in the
// log, which the verdict counts.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	o := r.signingRequest(t, r.token(t, nil))
	var inFlight, served, shed sync.WaitGroup
	var done, refused, gone atomic.Int64
	served.Add(16) // the load is on when this many certificates were issued
	for worker := range 8 {
		inFlight.Go(func() {
			for n := 0; ; n++ {
				e := edges[(worker+n)%len(edges)]
				a := e.ask(t.Context(), r, o, r.nextID(e))
				switch {
				case a.failed == nil && a.reason == "":
					r.issued.Add(1)
					if len(a.chain) != 3 {
						t.Errorf("%s: half a chain", e.name)
					}
					if done.Add(1) <= 16 {
						served.Done()
					}
				case a.failed == nil && a.reason == fault.ShuttingDown:
					refused.Add(1)
					if a.retry == 0 {
						t.Errorf("%s: shutting down, without a time to try again", e.name)
					}
					return
				case a.failed != nil && connectionGone(a.failed):
					gone.Add(1)
					return
				default:
					t.Errorf("%s: %s %q, %v", e.name, a.reason, a.message, a.failed)
					return
				}
			}
		})
	}
	served.Wait()
	shed.Go(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	inFlight.Wait()
	shed.Wait()
	t.Logf("%d issued, %d refused, %d found nobody", done.Load(), refused.Load(), gone.Load())
	if !strings.Contains(r.lines.String(), "shutting down") {
		t.Error("the log doesn't say that it was told to stop")
	}
}

// connectionGone reports whether nobody was there to take the request: it was
// never read, or the connection was closed before an answer began.
func connectionGone(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, io.EOF) || status.Code(err) == codes.Unavailable ||
		strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "server closed idle connection")
}

// snapshot is all that a certificate or a change would leave on the disk.
func (r *rig) snapshot(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir(), path == r.refused(), strings.HasSuffix(path, ".lock"), d.Name() == "LOCK":
			return nil
		}
		data, err := os.ReadFile(path) // #nosec G304 G122 -- a test's own file
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Every route that there is, with every method and no token.
func TestRoutesWithoutToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.awaitReadiness(t, "authority: ok\naudit: ok\nissuers: ok\nlog: ok\n")
	before := r.snapshot(t)
	_, index, err := get(t.Context(), r.url+"/")
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{"/", "/nothing"}
	for line := range strings.Lines(string(index)) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[1], "/") {
			paths = append(paths, strings.TrimSuffix(f[1], "…"))
		}
	}
	if len(paths) < 13 {
		t.Errorf("the index lists %v", paths)
	}
	for _, path := range paths {
		if prefix, found := strings.CutSuffix(path, "/"); found && prefix != "" {
			for _, below := range []string{"ct/v1/add-chain", "ct/v1/add-pre-chain", "checkpoint", "ct/v1/get-sth", "issuer/x"} {
				r.everyMethod(t, path+below)
			}
			continue
		}
		r.everyMethod(t, path)
	}
	r.everyRPC(t)
	after := r.snapshot(t)
	for path, text := range after {
		if before[path] != text {
			t.Errorf("%s has changed", path)
		}
	}
}

func (r *rig) everyMethod(t *testing.T, path string) {
	t.Helper()
	body := withoutToken(t, path, r.signingRequest(t, ""))
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
		request, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := r.http.Do(request)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			continue
		}
		text, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
		reads := method == "GET" || method == "HEAD" || method == "OPTIONS"
		switch {
		case response.StatusCode >= 500:
			t.Errorf("%s %s: %d %s", method, path, response.StatusCode, text)
		case !reads && response.StatusCode < 300:
			t.Errorf("%s %s: %d %s", method, path, response.StatusCode, text)
		case method == "POST" && strings.HasSuffix(path, "/signingCert") && response.StatusCode != 401:
			t.Errorf("%s %s: %d %s", method, path, response.StatusCode, text)
		}
	}
}

// withoutToken is a good request for the path but for the token.
func withoutToken(t *testing.T, path string, o signingRequest) []byte {
	t.Helper()
	body := map[string]any{"publicKeyRequest": map[string]any{"publicKey": map[string]any{"content": o.spki}, "proofOfPossession": o.proof}}
	if strings.HasPrefix(path, "/api/v1/") {
		body = map[string]any{"publicKey": map[string]any{"content": []byte(o.spki)}, "signedEmailAddress": o.proof}
	}
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// everyRPC calls each unary method of each service that reflection lists.
func (r *rig) everyRPC(t *testing.T) {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(r.grpc).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	listed, err := stream.Recv()
	if err := errors.Join(err, stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range listed.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(s.GetName()))
		if err != nil {
			t.Error(err)
			continue
		}
		methods := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			r.rpc(t, methods.Get(i))
		}
	}
	for _, want := range []string{"dev.sigstore.fulcio.v2.CA", "dev.sigstore.fulcio.v1beta.CA", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("reflection doesn't list %s: %v", want, names)
		}
	}
}

func (r *rig) rpc(t *testing.T, m protoreflect.MethodDescriptor) {
	t.Helper()
	if m.IsStreamingClient() || m.IsStreamingServer() {
		return // health watches and reflection, which only read
	}
	name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	var header metadata.MD
	var in, out proto.Message = dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	err := r.grpc.Invoke(t.Context(), name, in, out, grpc.Header(&header))
	// All of our own API is for somebody.
	if makes := m.Name() == "CreateSigningCertificate" || m.ParentFile().Package() == "mayfly.v1"; makes && status.Code(err) != codes.Unauthenticated || !makes && err != nil {
		t.Errorf("%s: %v", name, err)
	}
}
