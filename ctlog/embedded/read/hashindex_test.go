package read

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/tessera/api/layout"
)

// leafHash is the made-up hash of an entry. Every tenth shares its first four
// bytes with the one before, as happens by chance in a long log.
func leafHash(index uint64) [32]byte {
	hash := sha256.Sum256(binary.BigEndian.AppendUint64(nil, index))
	if index%10 == 9 {
		before := leafHash(index - 1)
		copy(hash[:4], before[:4])
	}
	return hash
}

// hashTiles writes the lowest hash tiles of a log of the size given.
func hashTiles(t *testing.T, d logdir.Dir, size uint64) {
	t.Helper()
	for tile := range (size + layout.TileWidth - 1) / layout.TileWidth {
		var data []byte
		for index := tile * layout.TileWidth; index < min(size, (tile+1)*layout.TileWidth); index++ {
			hash := leafHash(index)
			data = append(data, hash[:]...)
		}
		path := d.Path(layout.TilePath(0, tile, layout.PartialTileSize(0, tile, size)))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Each entry is found at each size at which the log was asked, and none that
// isn't there yet; the index stays a few sorted runs of eight bytes an entry.
func TestHashIndexFindsEveryEntryAsTheLogGrows(t *testing.T) {
	d := logdir.Dir(t.TempDir())
	var x hashIndex
	for _, size := range []uint64{1, 2, 10, 255, 256, 257, 300, 301, 302, 303, 700, 1024, 3000} {
		hashTiles(t, d, size)
		for index := range size {
			got, found, err := x.find(t.Context(), d, leafHash(index), size)
			if err != nil || !found || got != index {
				t.Fatalf("size %d: entry %d: got %d, %v, %v", size, index, got, found, err)
			}
		}
		if got, found, err := x.find(t.Context(), d, leafHash(size), size); err != nil || found {
			t.Fatalf("size %d: found %d, which isn't there yet (%v)", size, got, err)
		}
		pairs := 0
		for i, run := range x.runs {
			if pairs += len(run); i > 0 && len(x.runs[i-1]) <= 2*len(run) {
				t.Errorf("size %d: runs of %d and %d pairs side by side", size, len(x.runs[i-1]), len(run))
			}
		}
		if uint64(pairs) != size {
			t.Errorf("size %d: %d pairs", size, pairs)
		}
	}
	// A reader whose checkpoint is older sees no later entry.
	if got, found, err := x.find(t.Context(), d, leafHash(2999), 700); err != nil || found {
		t.Errorf("at size 700: found %d (%v)", got, err)
	}
}

// goneAfter is the context of a reader who goes away once it was asked so often.
type goneAfter struct {
	context.Context //nolint:containedctx // it is one
	asked           int
}

func (c *goneAfter) Err() error {
	if c.asked--; c.asked < 0 {
		return context.Canceled
	}
	return nil
}

// What a reader who went away has left of the index takes no more room than it has entries.
func TestHashIndexKeepsWhatAReaderWhoWentAwayHadRead(t *testing.T) {
	d := logdir.Dir(t.TempDir())
	const size = 64 * layout.TileWidth
	hashTiles(t, d, size)
	var x hashIndex
	for _, tiles := range []int{0, 3, 0, 1, 0} {
		if _, _, err := x.find(&goneAfter{t.Context(), tiles}, d, leafHash(0), size); err == nil {
			t.Fatal("the reader who went away got an answer")
		}
	}
	room := 0
	for _, run := range x.runs {
		room += cap(run)
	}
	if x.size != 4*layout.TileWidth || room > 2*int(x.size) {
		t.Errorf("%d entries are known, with room for %d", x.size, room)
	}
	if got, found, err := x.find(t.Context(), d, leafHash(size-1), size); err != nil || !found || got != size-1 {
		t.Errorf("after that: got %d, %v, %v", got, found, err)
	}
}
