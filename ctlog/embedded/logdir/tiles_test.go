package logdir_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// Each hash tile of a log with three levels of them is checked: a flipped bit anywhere, a
// tile that is cut short or gone, and one that is another tile, which is whole.
func TestVerifyTilesFindsWhatIsDamaged(t *testing.T) {
	t.Parallel()
	const size = 256*256 + 300 // level 0 has full tiles, level 1 a full one and a partial one, level 2 a partial one
	d := logdir.Dir(t.TempDir())
	entries := make([]logdir.Entry, size)
	for i := range entries {
		entries[i].Hash = rfc6962.DefaultHasher.HashLeaf(binary.BigEndian.AppendUint64(nil, uint64(i)))
	}
	if err := d.Grow(t.Context(), 0, entries); err != nil {
		t.Fatal(err)
	}
	r, err := d.Range(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := logdir.TreeOf(r)
	if err != nil {
		t.Fatal(err)
	}
	paced := 0
	verify := func() error {
		return d.VerifyTiles(t.Context(), tree, func(context.Context) error { paced++; return nil })
	}
	if err := verify(); err != nil || paced != 258 { // full tiles
		t.Fatalf("%v; %d tiles", err, paced)
	}
	other := readTile(t, d, "tile/0/002")
	for _, name := range []string{"tile/0/001", "tile/0/256", "tile/0/257.p/44", "tile/1/000", "tile/1/001.p/1", "tile/2/000.p/1"} {
		whole := readTile(t, d, name)
		last := bytes.Clone(whole)
		last[len(last)-1] ^= 1
		first := bytes.Clone(whole)
		first[0] ^= 1
		for what, damaged := range map[string][]byte{
			"its first bit": first, "its last bit": last, "cut short": whole[:len(whole)-1], "without its last hash": whole[:len(whole)-32],
			"too long": append(bytes.Clone(whole), whole[:32]...), "empty": {}, "another": other[:len(whole)], "gone": nil,
		} {
			if err := os.WriteFile(d.Path(name), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if damaged == nil {
				_ = os.Remove(d.Path(name))
			}
			if what == "too long" && name == "tile/0/257.p/44" { // which holds what the data tile is compared with
				if err := d.LeafHashes(t.Context(), size-1, size, size, func(uint64, [32]byte) {}); err == nil {
					t.Errorf("%s, %s: went unseen", name, what)
				}
			} else if err := verify(); err == nil {
				t.Errorf("%s, %s: went unseen", name, what)
			}
		}
		if err := os.WriteFile(d.Path(name), whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.VerifyTiles(t.Context(), checkpoint.Tree{Size: size, Root: other[:32]}, func(context.Context) error { return nil }); err == nil {
		t.Error("another root went unseen")
	}
}

func readTile(t *testing.T, d logdir.Dir, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(d.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
