package logdir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/crypto/cryptobyte"
)

// maxLeaf bounds an entry: the storage takes 256 KiB, and the fingerprints of its
// issuers come on top. What is longer is damaged.
const maxLeaf = 512 << 10

// streamBuffer is what a LeafReader reads at once.
const streamBuffer = 32 << 10

// LeafReader reads the entries of a data tile one after the other, so that a reader
// holds one of them and not the tile.
type LeafReader struct {
	in    *bufio.Reader
	index uint64 // of the next entry
	raw   []byte // of the last one
}

// NewLeafReader reads a data tile whose first entry has the index first.
func NewLeafReader(tile io.Reader, first uint64) *LeafReader {
	return &LeafReader{in: bufio.NewReaderSize(tile, streamBuffer), index: first}
}

// Next is the next entry, which holds until Next is called again. io.EOF when there is
// none. An entry whose leaf index is not its position is an error.
func (r *LeafReader) Next() (Leaf, error) {
	if _, err := r.in.Peek(1); err != nil {
		return Leaf{}, err
	}
	if err := r.readLeaf(); err != nil {
		return Leaf{}, fmt.Errorf("entry %d: %w", r.index, err)
	}
	input := cryptobyte.String(r.raw)
	l, err := parseLeaf(&input)
	if err != nil {
		return Leaf{}, fmt.Errorf("entry %d: %w", r.index, err)
	}
	if index, ok := (ctlog.SCT{Extensions: l.Extensions}).LeafIndex(); !ok || index != r.index {
		return Leaf{}, fmt.Errorf("entry %d: its leaf index is not its position", r.index)
	}
	r.index++
	return l, nil
}

// readLeaf reads the bytes of an entry in the form that parseLeaf reads.
func (r *LeafReader) readLeaf() error {
	r.raw = r.raw[:0]
	if err := r.take(8 + 2); err != nil { // timestamp and type
		return err
	}
	vectors := []int{3, 2, 2} // the sizes of the lengths of certificate, extensions, fingerprints
	if kind := r.raw[9]; kind == entryPrecert {
		if err := r.take(32); err != nil { // issuer key hash
			return err
		}
		vectors = []int{3, 2, 3, 2} // with the precertificate
	}
	for _, size := range vectors {
		if err := r.take(size); err != nil {
			return err
		}
		length := 0
		for _, b := range r.raw[len(r.raw)-size:] {
			length = length<<8 | int(b)
		}
		if err := r.take(length); err != nil {
			return err
		}
	}
	return nil
}

// take reads n bytes of an entry.
func (r *LeafReader) take(n int) error {
	begin := len(r.raw)
	if begin+n > maxLeaf {
		return fmt.Errorf("longer than %d bytes", maxLeaf)
	}
	r.raw = slices.Grow(r.raw, n)[:begin+n]
	if _, err := io.ReadFull(r.in, r.raw[begin:]); err != nil {
		return fmt.Errorf("cut short: %w", err)
	}
	return nil
}

// OpenTile opens the file that holds the tile in a log of the size given, and tells how
// many of its bytes are the tile's. A partial tile is the beginning of the present one,
// so a reader with an older checkpoint gets its tile even after the file has gone.
func (d Dir) OpenTile(t TilePath, size uint64) (f *os.File, length int64, err error) {
	now := t
	now.Width = layout.PartialTileSize(uint64(max(t.Level, 0)), t.Index, size)
	f, err = os.Open(d.Path(now.Name()))
	if now.Width > 0 && errors.Is(err, fs.ErrNotExist) {
		now.Width = 0
		f, err = os.Open(d.Path(now.Name()))
	}
	if err != nil {
		return nil, 0, err
	}
	if length, err = tileLength(f, t, now); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, length, nil
}

// tileLength is how much of a file that holds the tile now is the tile t.
func tileLength(f *os.File, t, now TilePath) (int64, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case t.Width == now.Width:
		return info.Size(), nil
	case t.Level != DataLevel:
		want := int64(t.Width) * int64(rfc6962.DefaultHasher.Size())
		if info.Size() < want {
			return 0, fmt.Errorf("hash tile %d has %d bytes, want %d", t.Index, info.Size(), want)
		}
		return want, nil
	}
	length := int64(0)
	leaves := NewLeafReader(f, t.Index*layout.EntryBundleWidth)
	for range t.Width {
		if err := leaves.readLeaf(); err != nil {
			return 0, fmt.Errorf("data tile %d: %w", t.Index, err)
		}
		length += int64(len(leaves.raw))
	}
	return length, nil
}

// Tile reads a tile as OpenTile finds it.
func (d Dir) Tile(t TilePath, size uint64) (_ []byte, err error) {
	f, length, err := d.OpenTile(t, size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.NewSectionReader(f, 0, length))
}
