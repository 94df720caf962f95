package service

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// canary is a claim's value in every token of a rig: no output may hold it.
const canary = "canary-4ad1c0ffee"

// rig is a whole service in this process: what `mayfly serve` runs, over a CA as
// `mayfly init` makes it, with real files, a real issuer and real listeners.
type rig struct {
	*Service
	issuer  *faultyIssuer
	dir     string
	lines   *catest.Lines          // the service's log, from debug
	further []ctlog.EmbeddedConfig // logs of its own that it didn't begin with
	key     *ecdsa.PrivateKey

	url     string
	metrics string
	http    *http.Client
	grpc    *grpc.ClientConn

	now    func() time.Time
	getenv func(string) string // of the keys' credentials
	wake   <-chan time.Time    // when ephemeral issuing certificates are looked at, beside their own times
	broken bool                // the test breaks the CA itself, and counts by itself what was begun

	stop func() error // ends the service as SIGTERM does; its error is run's

	mu      sync.Mutex
	answers []answer
	tokens  []string
	private []string // what else must appear nowhere
	asked   atomic.Int64
	issued  atomic.Int64
}

// newRig starts a service that is ready, and holds it to the common oracle when
// the test ends: what was refused left no trace but its record.
func newRig(t *testing.T, edit func(*rig, *config.Config)) *rig {
	t.Helper()
	r := startRig(t, edit)
	if err := r.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// startRig doesn't wait.
func startRig(t *testing.T, edit func(*rig, *config.Config)) *rig {
	t.Helper()
	return startRigFrom(t, edit, Source{})
}

// startRigFrom is startRig with a place to read the configuration from again.
func startRigFrom(t *testing.T, edit func(*rig, *config.Config), from Source) *rig {
	t.Helper()
	r := &rig{issuer: startIssuer(t), dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}, now: time.Now, private: []string{canary}}
	r.key = newKey(t)
	c := r.configuration(t)
	if edit != nil {
		edit(r, c)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s, err := Open(ctx, c, Dependencies{Now: r.now, getenv: r.getenv, wake: r.wake, Logger: r.logger()}, Overrides{}, from)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	r.Service = s
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	at := s.Addresses()
	r.url, r.metrics = "http://"+at.HTTP.String(), "http://"+at.Metrics.String()+"/metrics"
	r.http = &http.Client{Transport: &http.Transport{}, Timeout: patience}
	if r.grpc, err = grpc.NewClient(at.GRPC.String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.verdict(t) })
	return r
}

// logger keeps every line, from debug.
func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(r.lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// The files of a CA's folder, as `mayfly init` calls them.
const (
	configName    = "mayfly.yaml"
	authorityName = "authority"
	auditName     = "audit"
)

// configuration is that of a new CA with keys in files and an embedded log, as
// `mayfly init` writes it, with free ports.
func (r *rig) configuration(t *testing.T) *config.Config {
	t.Helper()
	now := time.Now()
	for _, dir := range []string{r.dir, filepath.Join(r.dir, auditName)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: filepath.Join(r.dir, authorityName), Organization: "Example", Now: now}); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Issuers = []identity.IssuerConfig{r.issuer.Config()}
	c.Server.PublicURL = "http://127.0.0.1:5555"
	c.Server.HTTPAddress, c.Server.GRPCAddress, c.Server.MetricsAddress = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.CA.Authority = authority.Config{
		Chain: setting.Path(filepath.Join(authorityName, "chain.pem")),
		Key:   setting.KeyRef("file:" + filepath.Join(authorityName, "issuing.key.pem")),
	}
	c.CTLog.Mode = ctlog.ModeEmbedded
	c.CTLog.Embedded = newShard(t, r.dir, now.UTC().Format("2006"), now.UTC().Truncate(time.Second))
	c.CTLog.Embedded.Operator = "Example"
	c.Audit.Path = setting.Path(filepath.Join(auditName, "audit.jsonl"))
	c.Store.Path = setting.Path(filepath.Join(t.TempDir(), "index.db")) // outside the folder, whose files tests compare
	text, err := config.Marshal(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.dir, configName)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// patience is how long a test waits for what takes a moment: enough for a
// loaded machine under the race detector.
const patience = 30 * time.Second

// get asks once, on a connection of its own.
func get(ctx context.Context, url string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// poll waits for a condition, with a bound.
func poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s for %s", patience, what)
		case <-tick.C:
		}
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func toPEM(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

func spkiOf(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// prove signs the challenge with SHA-256.
func prove(t testing.TB, key crypto.Signer, challenge string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(challenge))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// token is the issuer's genuine token with the canary in it.
func (r *rig) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	with := map[string]any{"canary": canary}
	for name, value := range claims {
		with[name] = value
	}
	return r.issuer.Token(t, with)
}

// signingRequest is a good request with the token given.
func (r *rig) signingRequest(t testing.TB, token string) signingRequest {
	t.Helper()
	return signingRequest{token: token, spki: toPEM("PUBLIC KEY", spkiOf(t, r.key.Public())), proof: prove(t, r.key, identitytest.Email)}
}

// issues fails the test unless the request is answered with a certificate by
// every edge, and gives the leaves.
func (r *rig) issues(t *testing.T, name string, o signingRequest) []*x509.Certificate {
	t.Helper()
	var leaves []*x509.Certificate
	for _, e := range edges {
		a := r.ask(t, e, o)
		if a.reason != "" || len(a.chain) != 3 {
			t.Errorf("%s, %s: %s %q, %d certificates", name, e.name, a.reason, a.message, len(a.chain))
			continue
		}
		leaves = append(leaves, a.chain[0])
	}
	return leaves
}

// counts is how often each stage of an issuance was gone through. A stage
// counts where its work was done, so that "sign_precertificate" and "sign" are
// the signatures that the CA's key has made.
func (r *rig) counts(t testing.TB) map[string]uint64 {
	t.Helper()
	families, err := r.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]uint64{}
	for _, f := range families {
		if f.GetName() == "mayfly_ca_issuance_seconds" {
			for _, m := range f.GetMetric() {
				found[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleCount()
			}
		}
	}
	if len(found) == 0 {
		t.Fatal("no metric counts the stages of an issuance")
	}
	return found
}

// sum adds up a counter or gauge over the labels given.
func (r *rig) sum(t testing.TB, name string, labels map[string]string) (sum float64) {
	t.Helper()
	families, err := r.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if want, ok := labels[l.GetName()]; ok && want != l.GetValue() {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func (r *rig) nextID(e edge) string { return fmt.Sprintf("request-%s-%d", e.id, r.asked.Add(1)) }
