package ctlog_test

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/certificate-transparency-go/ctutil"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// fixture is a fresh log under test.
type fixture struct {
	Log    ctlog.Log
	CA     *ctlogtest.CA // whose chains the log takes
	URL    string        // where the log's RFC 6962 reads are; empty: not checked
	Client *http.Client  // for URL
}

// parts are what each kind of log has to do, in the order of the table.
var parts = []struct {
	name string
	test func(*testing.T, fixture)
}{
	{"description", testDescription},
	{"one", testOne},
	{"concurrent", testConcurrent},
	{"again", testAgain},
	{"canceled", testCanceled},
	{"precertificate signer", testPrecertificateSigner},
	{"readable", testReadable},
}

// conforms holds a kind of log to the suite. Each part gets its own log from open, which
// cleans up with t.Cleanup. Of how it went, internal/tools/conformance/logs.sh makes a row
// of docs/log-conformance.md.
func conforms(t *testing.T, kind string, open func(t *testing.T) fixture) {
	t.Helper()
	t.Attr("log", kind)
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

// TestConformance holds the logs that need nothing else to the suite: our own, and our own
// as others see it.
func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("in process", func(t *testing.T) {
		t.Parallel()
		conforms(t, "embedded, in process", func(t *testing.T) fixture {
			log, f := openEmbedded(t, false)
			f.Log = log
			return f
		})
	})
	t.Run("over HTTP", func(t *testing.T) {
		t.Parallel()
		conforms(t, "embedded, over HTTP", func(t *testing.T) fixture {
			log, f := openEmbedded(t, true)
			c := external.Config{URL: f.URL, KeyFile: setting.Path(filepath.Join(t.TempDir(), "key.pem"))}
			if err := os.WriteFile(string(c.KeyFile), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: log.Description().SPKI}), 0o600); err != nil {
				t.Fatal(err)
			}
			over, err := external.New(c, external.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(over.Close)
			f.Log = over
			return f
		})
	})
}

// openEmbedded opens an embedded log, and serves it.
func openEmbedded(t *testing.T, submission bool) (*embedded.Log, fixture) {
	t.Helper()
	ca, dir := ctlogtest.NewCA(t), t.TempDir()
	log, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(dir, "log")), MarkFile: setting.Path(filepath.Join(dir, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond, Submission: submission,
	}, embedded.Options{Signer: ctlogtest.NewSigner(t), Create: true, Roots: [][]byte{ca.Root.Raw}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if err := log.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	next, requests := http.StripPrefix(log.Prefix(), log.Handler()), atomic.Uint32{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Each comes from another network: one address may submit little at once.
		r.RemoteAddr = fmt.Sprintf("[2001:db8:0:%x::1]:1", requests.Add(1)&0xffff)
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return log, fixture{CA: ca, URL: server.URL + log.Prefix(), Client: server.Client()}
}

func testDescription(t *testing.T, f fixture) {
	description := f.Log.Description()
	if description.ID != sha256.Sum256(description.SPKI) {
		t.Error("the log id is not the SHA-256 of the key")
	}
	if description.URL == "" {
		t.Error("the log has no URL")
	}
	if err := f.Log.Ready(t.Context()); err != nil {
		t.Errorf("a fresh log isn't ready: %v", err)
	}
}

func alone(t *testing.T, f fixture) *ctlog.Policy {
	t.Helper()
	p, err := ctlog.NewPolicy([]ctlog.Log{f.Log}, ctlog.Options{})
	if err != nil {
		t.Fatalf("NewPolicy: %v", err)
	}
	return p
}

func testOne(t *testing.T, f fixture) {
	scts, err := alone(t, f).Submit(t.Context(), f.CA.Chain(t))
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	if len(scts) != 1 {
		t.Fatalf("got %d SCTs, want 1", len(scts))
	}
}

func testConcurrent(t *testing.T, f fixture) {
	p := alone(t, f)
	const callers, each = 16, 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	positions := make(map[uint64]bool)
	for range callers {
		wg.Go(func() {
			for range each {
				scts, err := p.Submit(t.Context(), f.CA.Chain(t))
				if err != nil {
					t.Errorf("Submit: %v", err)
					return
				}
				index, ok := scts[0].LeafIndex()
				mu.Lock()
				if ok && positions[index] {
					t.Errorf("two certificates got the index %d", index)
				}
				positions[index] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func testAgain(t *testing.T, f fixture) {
	p, chain := alone(t, f), f.CA.Chain(t)
	for range 2 {
		if _, err := p.Submit(t.Context(), chain); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
}

func testCanceled(t *testing.T, f fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Log.Submit(ctx, f.CA.Chain(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled submission ended with %v, want context.Canceled", err)
	}
}

// testPrecertificateSigner: a log takes a precertificate of a precertificate signing
// certificate (RFC 6962 §3.1), promises the final certificate that the issuer
// itself signs, as certificate-transparency-go verifies it, and keeps the promise.
func testPrecertificateSigner(t *testing.T, f fixture) {
	p := alone(t, f)
	probe, _ := f.CA.ChainOfSigner(t)
	if err := p.Accepts(t.Context(), probe); err != nil {
		t.Fatalf("Accepts: %v", err)
	}
	chain, final := f.CA.ChainOfSigner(t)
	scts, err := p.Submit(t.Context(), chain)
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	path := make([]*ctx509.Certificate, 2)
	for i, der := range [][]byte{final(scts...), f.CA.Intermediate.Raw} {
		if path[i], err = ctx509.ParseCertificate(der); path[i] == nil || ctx509.IsFatal(err) {
			t.Fatalf("certificate-transparency-go can't parse certificate %d: %v", i, err)
		}
	}
	key, err := ctlog.ParseKey(f.Log.Description().SPKI)
	if err != nil {
		t.Fatal(err)
	}
	embedded, err := ctx509util.ParseSCTsFromCertificate(path[0].Raw)
	if err != nil || len(embedded) != 1 {
		t.Fatalf("%d embedded SCTs, %v; want 1", len(embedded), err)
	}
	if err := ctutil.VerifySCT(key, path, embedded[0], true); err != nil {
		t.Errorf("certificate-transparency-go, on the final certificate: %v", err)
	}
	if f.URL != "" {
		reader := ctlogtest.NewReader(t, f.Log.Description(), f.URL, f.Client)
		reader.Holds(t, scts[0], chain, reader.Await(t, 2))
	}
}

// testReadable reads the log with certificate-transparency-go's client: what was
// promised is there, and tree heads are consistent.
func testReadable(t *testing.T, f fixture) {
	if f.URL == "" {
		t.Fatal("the fixture has no URL to read from")
	}
	p := alone(t, f)
	var promised []ctlog.SCT
	var chains []ctlog.Chain
	submit := func(n int) {
		for range n {
			chain := f.CA.Chain(t)
			scts, err := p.Submit(t.Context(), chain)
			if err != nil {
				t.Fatalf("Submit: %v", err)
			}
			promised, chains = append(promised, scts[0]), append(chains, chain)
		}
	}
	reader := ctlogtest.NewReader(t, f.Log.Description(), f.URL, f.Client)
	submit(3)
	first := reader.Await(t, 3)
	submit(5)
	second := reader.Await(t, 8)
	reader.Consistent(t, first, second)
	for i, sct := range promised {
		reader.Holds(t, sct, chains[i], second)
	}
}
