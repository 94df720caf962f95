package logdir

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

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

// TestLeafReaderBounds: an entry that is longer than what is read at once is read whole, and
// so are those around it; one that is longer than any entry ends the reading.
func TestLeafReaderBounds(t *testing.T) {
	t.Parallel()
	entry := func(index byte, size int) []byte {
		b := append(make([]byte, 8), 0, 0, byte(size>>16), byte(size>>8), byte(size))
		b = append(b, bytes.Repeat([]byte{index}, size)...)
		return append(b, 0, 8, 0, 0, 5, 0, 0, 0, 0, index, 0, 0)
	}
	var tile []byte
	sizes := []int{1, streamBuffer - 30, streamBuffer, 3 * streamBuffer, 2, maxLeaf - 25, 1}
	for i, size := range sizes {
		tile = append(tile, entry(byte(i), size)...)
	}
	for name, from := range map[string]io.Reader{"whole": bytes.NewReader(tile), "by halves": iotest.HalfReader(bytes.NewReader(tile))} {
		reader := NewLeafReader(from, 0)
		for i, size := range sizes {
			l, err := reader.Next()
			if err != nil || !bytes.Equal(l.Raw, entry(byte(i), size)) {
				t.Fatalf("%s: entry %d of %d bytes: %d bytes, %v", name, i, size, len(l.Raw), err)
			}
		}
		if _, err := reader.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: at the end: %v", name, err)
		}
	}
	for name, tt := range map[string]struct {
		from io.Reader
		want string
	}{
		"too long":      {bytes.NewReader(append(entry(0, 1), entry(1, maxLeaf)...)), "entry 1: "},
		"cut short":     {bytes.NewReader(append(entry(0, 1), entry(1, 9)[:20]...)), "entry 1: cut short"},
		"a broken disk": {io.MultiReader(bytes.NewReader(append(entry(0, 1), entry(1, 9)[:20]...)), iotest.ErrReader(errors.New("EIO"))), "entry 1: EIO"},
	} {
		reader := NewLeafReader(tt.from, 0)
		if _, err := reader.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Next(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	tree := checkpoint.Tree{Size: 7, Root: make([]byte, 32)}
	f.Add(append(encodeMark([32]byte{1}, High{Tree: tree, First: 5, Entries: []byte("entries")}), "entries"...))
	f.Add(encodeMark([32]byte{1}, High{Tree: tree}))
	f.Add(oldMark([32]byte{1}, tree))
	f.Fuzz(func(t *testing.T, slot []byte) {
		id, got, old, err := parseMark(slot)
		if err != nil || old {
			return
		}
		if len(got.Entries) > MaxFlush {
			t.Error("more entries than a mark has")
		}
		again, same, old, err := parseMark(append(encodeMark(id, got), got.Entries...))
		if err != nil || old || again != id || !reflect.DeepEqual(got, same) {
			t.Errorf("%+v is read again as %+v, %v", got, same, err)
		}
	})
}

// oldMark is a mark as earlier versions wrote it, one slot of two.
func oldMark(id [32]byte, t checkpoint.Tree) []byte {
	text := fmt.Sprintf("%s\n%x\n%d\n%s\n", oldMarkHeader, id, t.Size, base64.StdEncoding.EncodeToString(t.Root))
	text += fmt.Sprintf("%x\n", sha256.Sum256([]byte(text)))
	return append([]byte(text), bytes.Repeat([]byte("\n"), oldMarkSlot-len(text))...)
}

// TestMarkOfAnEarlierVersion: a mark that an earlier version wrote is read, and the next
// write leaves nothing of it that the earlier version would read.
func TestMarkOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	id := [32]byte{1}
	tree := func(size uint64) checkpoint.Tree { return checkpoint.Tree{Size: size, Root: make([]byte, 32)} }
	for _, slots := range [][2]uint64{{7, 8}, {8, 7}, {8, 8}} {
		path := filepath.Join(t.TempDir(), "mark")
		if err := os.WriteFile(path, append(oldMark(id, tree(slots[0])), oldMark(id, tree(slots[1]))...), 0o600); err != nil {
			t.Fatal(err)
		}
		m, high, err := TakeMark(t.Context(), path, id, time.Second)
		if err != nil || high.Size != 8 {
			t.Fatalf("%v is read as %+v, %v", slots, high, err)
		}
		if err := errors.Join(m.Advance(High{Tree: tree(8)}), m.Close()); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, oldMarkSlot} {
			if bytes.HasPrefix(raw[at:], []byte(oldMarkHeader)) {
				t.Errorf("an earlier version reads a mark at byte %d", at)
			}
		}
		if high, err := ReadMark(path, id); err != nil || high.Size != 8 {
			t.Errorf("then it is %+v, %v", high, err)
		}
	}
}

// TestMarkSurvivesATornWrite: whatever part of a write got to the disk, the mark is the
// one before or the new one.
func TestMarkSurvivesATornWrite(t *testing.T) {
	t.Parallel()
	id, path := [32]byte{1}, filepath.Join(t.TempDir(), "mark")
	high := func(size uint64) High {
		return High{Tree: checkpoint.Tree{Size: size, Root: make([]byte, 32)}, First: size - 1, Entries: bytes.Repeat([]byte{byte(size)}, 5000)}
	}
	if err := CreateMark(path, id, high(1).Tree); err != nil {
		t.Fatal(err)
	}
	for size := uint64(2); size < 6; size++ {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := TakeMark(t.Context(), path, id, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(m.Advance(high(size)), m.Close()); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ReadMark(path, id); err != nil || !reflect.DeepEqual(got, high(size)) {
			t.Errorf("%d is read as %d, %v", size, got.Size, err)
		}
		copied := path + "-torn"
		before = append(before, make([]byte, len(after))...)[:len(after)]
		for sector := 0; sector < len(after); sector += 512 {
			end := min(sector+512, len(after))
			if bytes.Equal(after[sector:end], before[sector:end]) {
				continue
			}
			torn := bytes.Clone(after)
			copy(torn[sector:end], before[sector:])
			if err := os.WriteFile(copied, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadMark(copied, id); err != nil || got.Size != size && got.Size != size-1 {
				t.Errorf("%d without its sector at %d is read as %d, %v", size, sector, got.Size, err)
			}
		}
	}
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
