package read

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"golang.org/x/time/rate"
)

// TestPackedTilesAreKeptThatWereAskedForLast: a tile is packed once, and what is
// kept is bounded.
func TestPackedTilesAreKeptThatWereAskedForLast(t *testing.T) {
	t.Parallel()
	b := NewBudget()
	b.pace = rate.NewLimiter(rate.Inf, 0)
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil { // it doesn't get smaller
		t.Fatal(err)
	}
	pack := func(index uint64) []byte {
		t.Helper()
		packed, err := b.pack(gzipKey{"log", logdir.TilePath{Index: index}}, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return packed
	}
	known := func(index uint64) bool { return b.packed.find(gzipKey{"log", logdir.TilePath{Index: index}}) != nil }
	first := pack(0)
	z, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || !bytes.Equal(plain, data) {
		t.Fatalf("other bytes came out: %v", err)
	}
	if again := pack(0); &again[0] != &first[0] {
		t.Error("a tile was packed again")
	}
	if other, err := b.pack(gzipKey{"other", logdir.TilePath{}}, bytes.NewReader(nil), 0); err != nil || len(other) > 100 {
		t.Errorf("another log's tile: %d bytes, %v", len(other), err)
	}
	for index := range uint64(20) {
		pack(index)
		if !known(0) {
			t.Errorf("forgotten after %d tiles, though it was asked for", index)
		}
	}
	c, held := b.packed, 0
	for _, data := range c.tiles.Values() {
		held += len(data)
	}
	if c.bytes > maxCompressed || c.bytes != held || !known(19) || known(7) {
		t.Errorf("%d bytes, counted as %d, in %d tiles", held, c.bytes, c.tiles.Len())
	}
}

// TestTilesGoPlainWhenPackingCostsTooMuch: beyond the pace, while another is packed, or
// where a tile is huge, nobody waits for a packed tile.
func TestTilesGoPlainWhenPackingCostsTooMuch(t *testing.T) {
	t.Parallel()
	b := NewBudget()
	index := uint64(0)
	packed := func(length int) bool {
		t.Helper()
		index++
		small, err := b.pack(gzipKey{"log", logdir.TilePath{Index: index}}, bytes.NewReader(make([]byte, length)), int64(length))
		if err != nil {
			t.Fatal(err)
		}
		return small != nil
	}
	if packed(maxPacked + 1) {
		t.Error("a huge tile was packed")
	}
	b.packer.Lock()
	if packed(1) {
		t.Error("two were packed at the same time")
	}
	b.packer.Unlock()
	b.pace = rate.NewLimiter(0, packBurst)
	for i, want := range []bool{true, true, false} {
		if packed(maxPacked) != want {
			t.Errorf("tile %d of a burst: packed %t, want %t", i, !want, want)
		}
	}
}
