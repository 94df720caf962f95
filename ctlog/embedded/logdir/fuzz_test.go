package logdir

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
)

func FuzzParseLeaves(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(append(make([]byte, 8), 0, 0, 0, 0, 1, 'c', 0, 8), 0, 0, 5, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaves, err := ParseLeaves(data, 0)
		if err != nil {
			return
		}
		var back []byte
		for _, l := range leaves {
			back = append(back, l.Raw...)
		}
		if !bytes.Equal(back, data) {
			t.Error("the entries don't add up to the tile")
		}
	})
}

// FuzzLeafReader: read one by one, the entries are those of the whole tile.
func FuzzLeafReader(f *testing.F) {
	f.Add(append(append(make([]byte, 8), 0, 0, 0, 0, 1, 'c', 0, 8), 0, 0, 5, 0, 0, 0, 0, 0, 0, 0))
	f.Add(append(make([]byte, 8), 0, 1, 9))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaves, whole := ParseLeaves(data, 0)
		reader := NewLeafReader(iotest.OneByteReader(bytes.NewReader(data)), 0)
		count := 0
		for {
			l, err := reader.Next()
			if err != nil {
				if (err == io.EOF) != (whole == nil) { //nolint:errorlint // as it is: a wrapped one is a tile cut short
					t.Errorf("the tile: %v; one by one: %v", whole, err)
				}
				return
			}
			if whole == nil && (count == len(leaves) || !bytes.Equal(l.Raw, leaves[count].Raw)) {
				t.Fatalf("entry %d is another", count)
			}
			count++
		}
	})
}

func FuzzParseMark(f *testing.F) {
	f.Add(encodeMark([32]byte{1}, checkpoint.Tree{Size: 7, Root: make([]byte, 32)}))
	f.Fuzz(func(t *testing.T, slot []byte) {
		id, got, err := parseMark(slot)
		if err == nil && !bytes.Equal(bytes.TrimRight(encodeMark(id, got), "\n"), bytes.TrimRight(slot, "\n")) {
			t.Error("two slots mean the same mark")
		}
	})
}

func FuzzParseTilePath(f *testing.F) {
	for _, s := range []string{"tile/0/000", "tile/data/x001/x234/067.p/9", "tile/5/999.p/255", "tile/0/x000/000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		p, ok := ParseTilePath(path)
		if !ok {
			return
		}
		if bytes.Contains([]byte(path), []byte("..")) {
			t.Error("a path that climbs")
		}
		if path != p.Name() {
			t.Errorf("%q is another way to write %q", path, p.Name())
		}
	})
}
