package embedded_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
)

// TestArchive: a log that is frozen is read as before, from its directory and
// from a backup, and takes nothing.
func TestArchive(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	about := l.Description()
	b.load(t, l, 300)
	chain := b.ca.Chain(t)
	sct, err := l.Submit(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{b.path(), backup} {
		a, err := read.OpenArchive(about, read.Options{Dir: logdir.Dir(dir)})
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(http.StripPrefix(a.Prefix(), a.Handler()))
		t.Cleanup(s.Close)
		r := ctlogtest.NewReader(t, about, s.URL+a.Prefix(), s.Client())
		r.Holds(t, sct, chain, r.Await(t, 301))
		get(t, s.Client(), s.URL+a.Prefix()+"/tile/data/001.p/45", 200)
		file := filepath.Join(dir, logdir.CheckpointName)
		whole := readFile(t, file)
		flip(t, file) // one that doesn't hold is never served, though one that did was read before
		get(t, s.Client(), s.URL+a.Prefix()+"/checkpoint", 500)
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		get(t, s.Client(), s.URL+a.Prefix()+"/checkpoint", 200)
		if status, _ := post(t, s.Client(), s.URL+a.Prefix()+"/ct/v1/add-chain", []byte("x")); status < 400 {
			t.Errorf("a frozen log took a submission: %d", status)
		}
	}
	empty := filepath.Join(backup, logdir.CheckpointName)
	whole := readFile(t, empty)
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read.OpenArchive(about, read.Options{Dir: logdir.Dir(backup)}); err == nil {
		t.Error("opened with an empty checkpoint")
	}
	if err := os.WriteFile(empty, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	spki := ctlogtest.NewSigner(t).SPKI(t)
	stranger := ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: about.URL}
	if _, err := read.OpenArchive(stranger, read.Options{Dir: logdir.Dir(backup)}); err == nil {
		t.Error("opened with another key")
	}
}

// TestProofsInEarlierTrees: an entry is proved to be in every tree that the log had, also
// by a backup, which has the tiles of the last one alone.
func TestProofsInEarlierTrees(t *testing.T) {
	t.Parallel()
	const size, index = 20, 3
	b := newBench(t)
	b.write(t, size)
	l := b.openNow(t)
	about := l.Description()
	closeLog(t, l)
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	leaves, err := logdir.Dir(backup).Bundle(0, size)
	if err != nil {
		t.Fatal(err)
	}
	a, err := read.OpenArchive(about, read.Options{Dir: logdir.Dir(backup)})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.StripPrefix(a.Prefix(), a.Handler()))
	t.Cleanup(s.Close)
	asked := s.URL + a.Prefix() + "/ct/v1/get-proof-by-hash?hash=" + url.QueryEscape(base64.StdEncoding.EncodeToString(leaves[index].Hash()))
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, l := range leaves {
		if err := tree.Append(l.Hash(), nil); err != nil {
			t.Fatal(err)
		}
		if tree.End() <= index {
			continue
		}
		root, err := tree.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		var byHash ct.GetProofByHashResponse
		var entry ct.GetEntryAndProofResponse
		_, raw := get(t, s.Client(), fmt.Sprintf("%s&tree_size=%d", asked, tree.End()), 200)
		err = json.Unmarshal(raw, &byHash)
		_, raw = get(t, s.Client(), fmt.Sprintf("%s/ct/v1/get-entry-and-proof?leaf_index=%d&tree_size=%d", s.URL+a.Prefix(), index, tree.End()), 200)
		if err == nil {
			err = json.Unmarshal(raw, &entry)
		}
		for _, path := range [][][]byte{byHash.AuditPath, entry.AuditPath} {
			if err == nil {
				err = proof.VerifyInclusion(rfc6962.DefaultHasher, index, tree.End(), leaves[index].Hash(), path, root)
			}
		}
		if err != nil {
			t.Errorf("in the tree of %d entries: %v", tree.End(), err)
		}
	}
}
