package ctlogtest

import (
	"bytes"
	"cmp"
	"net/http"
	"testing"
	"time"

	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// patience bounds every wait for a condition.
const patience = 30 * time.Second

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
