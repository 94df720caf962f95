package embedded

import (
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

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
func hashTiles(t *testing.T, s store, size uint64) {
	t.Helper()
	for tile := range (size + layout.TileWidth - 1) / layout.TileWidth {
		var data []byte
		for index := tile * layout.TileWidth; index < min(size, (tile+1)*layout.TileWidth); index++ {
			hash := leafHash(index)
			data = append(data, hash[:]...)
		}
		path := s.path(layout.TilePath(0, tile, layout.PartialTileSize(0, tile, size)))
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
func TestHashIndex_Grows(t *testing.T) {
	s := store{dir: t.TempDir()}
	var x hashIndex
	for _, size := range []uint64{1, 2, 10, 255, 256, 257, 300, 301, 302, 303, 700, 1024, 3000} {
		hashTiles(t, s, size)
		for index := range size {
			got, found, err := x.find(t.Context(), s, leafHash(index), size)
			if err != nil || !found || got != index {
				t.Fatalf("size %d: entry %d: got %d, %v, %v", size, index, got, found, err)
			}
		}
		if got, found, err := x.find(t.Context(), s, leafHash(size), size); err != nil || found {
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
	if got, found, err := x.find(t.Context(), s, leafHash(2999), 700); err != nil || found {
		t.Errorf("at size 700: found %d (%v)", got, err)
	}
}
