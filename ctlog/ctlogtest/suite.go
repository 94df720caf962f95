package ctlogtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/ctutil"
	"github.com/google/certificate-transparency-go/jsonclient"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// patience bounds every wait for a condition in the suite.
const patience = 30 * time.Second

// Fixture is a fresh log under test.
type Fixture struct {
	Log    ctlog.Log
	CA     *CA          // whose chains the log takes
	URL    string       // where the log's RFC 6962 reads are; empty: not checked
	Client *http.Client // for URL
}

// parts are what each kind of log has to do, in the order of the table.
var parts = []struct {
	name string
	test func(*testing.T, Fixture)
}{
	{"description", testDescription},
	{"one", testOne},
	{"concurrent", testConcurrent},
	{"again", testAgain},
	{"canceled", testCanceled},
	{"precertificate signer", testPrecertificateSigner},
	{"readable", testReadable},
}

// Run is the conformance suite of [ctlog.Log] for one kind of log. Each part
// gets its own log from open, which cleans up with t.Cleanup. Of how it went,
// internal/tools/conformance/logs.sh makes a row of docs/log-conformance.md.
func Run(t *testing.T, kind string, open func(t *testing.T) Fixture) {
	t.Helper()
	t.Attr("log", kind)
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

func testDescription(t *testing.T, f Fixture) {
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

func policy(t *testing.T, f Fixture) *ctlog.Policy {
	t.Helper()
	p, err := ctlog.NewPolicy([]ctlog.Log{f.Log}, ctlog.Options{})
	if err != nil {
		t.Fatalf("NewPolicy: %v", err)
	}
	return p
}

func testOne(t *testing.T, f Fixture) {
	scts, err := policy(t, f).Submit(t.Context(), f.CA.Chain(t))
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	if len(scts) != 1 {
		t.Fatalf("got %d SCTs, want 1", len(scts))
	}
}

func testConcurrent(t *testing.T, f Fixture) {
	p := policy(t, f)
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

func testAgain(t *testing.T, f Fixture) {
	p, chain := policy(t, f), f.CA.Chain(t)
	for range 2 {
		if _, err := p.Submit(t.Context(), chain); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
}

func testCanceled(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Log.Submit(ctx, f.CA.Chain(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled submission ended with %v, want context.Canceled", err)
	}
}

// testPrecertificateSigner: a log takes a precertificate of a precertificate signing
// certificate (RFC 6962 §3.1), promises the final certificate that the issuer
// itself signs, as certificate-transparency-go verifies it, and keeps the promise.
func testPrecertificateSigner(t *testing.T, f Fixture) {
	p := policy(t, f)
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
		reader := NewReader(t, f.Log.Description(), f.URL, f.Client)
		reader.Holds(t, scts[0], chain, reader.Await(t, 2))
	}
}

// testReadable reads the log with certificate-transparency-go's client: what was
// promised is there, and tree heads are consistent.
func testReadable(t *testing.T, f Fixture) {
	if f.URL == "" {
		t.Fatal("the fixture has no URL to read from")
	}
	p := policy(t, f)
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
	reader := NewReader(t, f.Log.Description(), f.URL, f.Client)
	submit(3)
	first := reader.Await(t, 3)
	submit(5)
	second := reader.Await(t, 8)
	reader.Consistent(t, first, second)
	for i, sct := range promised {
		reader.Holds(t, sct, chains[i], second)
	}
}

// Reader reads a log over RFC 6962 as a monitor does.
type Reader struct{ *client.LogClient }

// NewReader makes a reader that verifies with the log's key.
func NewReader(t testing.TB, description ctlog.Description, url string, c *http.Client) *Reader {
	t.Helper()
	lc, err := client.New(url, cmp.Or(c, http.DefaultClient), jsonclient.Options{PublicKeyDER: description.SPKI})
	if err != nil {
		t.Fatalf("making a reader: %v", err)
	}
	return &Reader{lc}
}

// Head is the log's tree head, its signature verified.
func (r *Reader) Head(t testing.TB) checkpoint.Tree {
	t.Helper()
	sth, err := r.GetSTH(t.Context())
	if err != nil {
		t.Fatalf("get-sth: %v", err)
	}
	return checkpoint.Tree{Size: sth.TreeSize, Root: sth.SHA256RootHash[:]}
}

// Await waits until the published tree has at least size entries.
func (r *Reader) Await(t testing.TB, size uint64) checkpoint.Tree {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if h := r.Head(t); h.Size >= size {
			return h
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log published no tree of size %d within %s", size, patience)
		}
		<-tick.C
	}
}

// Consistent verifies that second continues first.
func (r *Reader) Consistent(t testing.TB, first, second checkpoint.Tree) {
	t.Helper()
	if first.Size == 0 || first.Size == second.Size {
		return
	}
	path, err := r.GetSTHConsistency(t.Context(), first.Size, second.Size)
	if err != nil {
		t.Fatalf("get-sth-consistency: %v", err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, first.Size, second.Size, path, first.Root, second.Root); err != nil {
		t.Errorf("from %d to %d: %v", first.Size, second.Size, err)
	}
}

// Holds verifies that the log keeps the promise of an SCT in the tree head: the
// entry is included, stands at the SCT's index if that says one, and is this
// certificate with its chain.
func (r *Reader) Holds(t testing.TB, sct ctlog.SCT, chain ctlog.Chain, in checkpoint.Tree) {
	t.Helper()
	leaf, err := chain.SignedBytes(sct.Timestamp, sct.Extensions) // the same bytes as the MerkleTreeLeaf
	if err != nil {
		t.Fatal(err)
	}
	hash := rfc6962.DefaultHasher.HashLeaf(leaf)
	path, err := r.GetProofByHash(t.Context(), hash, in.Size)
	if err != nil {
		t.Fatalf("get-proof-by-hash: %v", err)
	}
	at := path.LeafIndex
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(at), in.Size, hash, path.AuditPath, in.Root); err != nil {
		t.Errorf("entry %d: %v", at, err)
	}
	if index, ok := sct.LeafIndex(); ok && index != uint64(at) {
		t.Errorf("the SCT says that its entry is %d, the log says %d", index, at)
	}
	got, err := r.GetRawEntries(t.Context(), at, at)
	if err != nil {
		t.Fatalf("get-entries: %v", err)
	}
	if len(got.Entries) == 0 || !bytes.Equal(got.Entries[0].LeafInput, leaf) {
		t.Fatalf("entry %d is not what its SCT promised", at)
	}
	entries, err := r.GetEntries(t.Context(), at, at)
	if err != nil {
		t.Fatalf("get-entries, parsed: %v", err)
	}
	if p := entries[0].Precert; p == nil || !bytes.Equal(p.Submitted.Data, chain.Precertificate) || len(entries[0].Chain) != len(chain.Issuers) {
		t.Errorf("entry %d has another precertificate or chain", at)
	}
}
