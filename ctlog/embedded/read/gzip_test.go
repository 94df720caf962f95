package read

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// TestGzipCacheKeepsFullTilesThatWereAskedForLast: a full tile is compressed once, a partial one is not kept, and what is
// kept is bounded.
func TestGzipCacheKeepsFullTilesThatWereAskedForLast(t *testing.T) {
	t.Parallel()
	var p gzipCache
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil { // it doesn't get smaller
		t.Fatal(err)
	}
	first, err := p.get(logdir.TilePath{Level: logdir.DataLevel}, data)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || !bytes.Equal(plain, data) {
		t.Fatalf("other bytes came out: %v", err)
	}
	if again, err := p.get(logdir.TilePath{Level: logdir.DataLevel}, nil); err != nil || &again[0] != &first[0] {
		t.Errorf("a full tile was compressed again: %v", err)
	}
	if _, err := p.get(logdir.TilePath{Level: logdir.DataLevel, Index: 1, Width: 3}, data); err != nil || p.find(1) != nil {
		t.Errorf("a partial tile was kept: %v", err)
	}
	for index := range uint64(20) {
		if _, err := p.get(logdir.TilePath{Level: logdir.DataLevel, Index: index}, data); err != nil {
			t.Fatal(err)
		}
		if p.find(0) == nil && index < 6 {
			t.Errorf("forgotten after %d tiles, though it was asked for", index)
		}
	}
	if p.bytes > maxCompressed || p.recent.Len() != len(p.known) || p.find(19) == nil || p.find(7) != nil {
		t.Errorf("%d bytes in %d tiles", p.bytes, len(p.known))
	}
}
