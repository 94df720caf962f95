package logdir

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
)

// DataLevel stands for `data` where a hash tile has its level.
const DataLevel = -1

// MaxLevel is the highest level of hash tiles in a path (c2sp.org/static-ct-api).
const MaxLevel = 5

// TilePath is a path of the tile grammar: tile/<level>/<index>[.p/<width>].
type TilePath struct {
	Level int    // 0 … 5, or DataLevel
	Index uint64 // which tile of the level
	Width uint8  // entries of a partial tile; 0: a full one
}

// ParseTilePath reads a path. Each tile has exactly one: no leading zeros, no
// empty or dot parts, no width of a full tile.
func ParseTilePath(path string) (TilePath, bool) {
	rest, below := strings.CutPrefix(path, TileDir+"/")
	level, number, found := strings.Cut(rest, "/")
	if !below || !found {
		return TilePath{}, false
	}
	var t TilePath
	var err error
	if level == "data" {
		t.Level = DataLevel
		t.Index, t.Width, err = layout.ParseTileIndexPartial(number)
	} else {
		var l uint64
		l, t.Index, t.Width, err = layout.ParseTileLevelIndexPartial(level, number)
		t.Level = int(l)
	}
	return t, err == nil && t.Level <= MaxLevel && t.Name() == path
}

// Within reports whether all of the tile is in a log of the size given.
func (t TilePath) Within(size uint64) bool {
	level := uint64(max(t.Level, 0))
	have := size >> (layout.TileHeight * level)
	width := cmp.Or(uint64(t.Width), layout.TileWidth)
	return t.Index <= have/layout.TileWidth && t.Index*layout.TileWidth+width <= have
}

// Name is the path below the log's directory and its URL.
func (t TilePath) Name() string {
	if t.Level == DataLevel {
		return TileDir + "/data/" + layout.NWithSuffix(0, t.Index, t.Width)
	}
	return layout.TilePath(uint64(t.Level), t.Index, t.Width)
}

// tiles reads the hash tiles of a log of the size given.
func (d Dir) tiles(size uint64) client.TileFetcherFunc {
	return func(_ context.Context, level, index uint64, partial uint8) ([]byte, error) {
		return d.Tile(TilePath{Level: int(level), Index: index, Width: partial}, size)
	}
}

// Bundle reads and parses the entries [index*256, …) of a log of the size given.
func (d Dir) Bundle(index, size uint64) ([]Leaf, error) {
	partial := layout.PartialTileSize(0, index, size)
	want := cmp.Or(int(partial), layout.EntryBundleWidth)
	data, err := d.Tile(TilePath{Level: DataLevel, Index: index, Width: partial}, size)
	if err != nil {
		return nil, fmt.Errorf("reading data tile %d: %w", index, err)
	}
	leaves, err := ParseLeaves(data, index*layout.EntryBundleWidth)
	if err != nil {
		return nil, fmt.Errorf("data tile %d: %w", index, err)
	}
	if len(leaves) != want {
		return nil, fmt.Errorf("data tile %d has %d entries, want %d", index, len(leaves), want)
	}
	return leaves, nil
}

// Bundles is how many data tiles a log of the size given has.
func Bundles(size uint64) uint64 {
	return (size + layout.EntryBundleWidth - 1) / layout.EntryBundleWidth
}

// hashes is a hash tile of a log of the size given; the beginning of the full one where
// the partial one is gone.
func (d Dir) hashes(level int, index, size uint64) ([]byte, error) {
	partial := layout.PartialTileSize(uint64(level), index, size)
	tile, err := d.Tile(TilePath{Level: level, Index: index, Width: partial}, size)
	if err != nil {
		return nil, fmt.Errorf("reading hash tile %d of level %d: %w", index, level, err)
	}
	if want := cmp.Or(int(partial), layout.TileWidth) * rfc6962.DefaultHasher.Size(); len(tile) != want {
		return nil, fmt.Errorf("hash tile %d of level %d has %d bytes, want %d", index, level, len(tile), want)
	}
	return tile, nil
}

// LeafHashes calls yield with the leaf hashes of [from, to), read from the lowest
// hash tiles of a log of the size given.
func (d Dir) LeafHashes(ctx context.Context, from, to, size uint64, yield func(index uint64, hash [32]byte)) error {
	for from < to {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("reading leaf hashes: %w", err)
		}
		tile, err := d.hashes(0, from/layout.TileWidth, size)
		if err != nil {
			return err
		}
		for at := from % layout.TileWidth * 32; from < to && at < uint64(len(tile)); at += 32 {
			yield(from, [32]byte(tile[at:at+32]))
			from++
		}
	}
	return nil
}

// Range is the compact range over the first size entries, made from the tiles.
func (d Dir) Range(ctx context.Context, size uint64) (*compact.Range, error) {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	if size == 0 {
		return factory.NewEmptyRange(0), nil
	}
	nodes, err := client.FetchRangeNodes(ctx, size, d.tiles(size))
	if err != nil {
		return nil, fmt.Errorf("reading the tree of size %d: %w", size, err)
	}
	r, err := factory.NewRange(0, size, nodes)
	if err != nil {
		return nil, fmt.Errorf("computing the root of size %d: %w", size, err)
	}
	return r, nil
}

// TreeOf is the tree over a compact range that begins with the first entry.
func TreeOf(r *compact.Range) (checkpoint.Tree, error) {
	if r.End() == 0 {
		return EmptyTree(), nil
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return checkpoint.Tree{}, fmt.Errorf("computing the root of size %d: %w", r.End(), err)
	}
	return checkpoint.Tree{Size: r.End(), Root: root}, nil
}

// VerifyRoot refuses tiles that don't add up to a tree.
func (d Dir) VerifyRoot(ctx context.Context, t checkpoint.Tree) error {
	r, err := d.Range(ctx, t.Size)
	if err != nil {
		return err
	}
	now, err := TreeOf(r)
	if err == nil && !bytes.Equal(now.Root, t.Root) {
		err = fmt.Errorf("the tiles of the log's %d entries don't add up to its root: damaged or forked", t.Size)
	}
	return err
}

// VerifyTiles compares each hash tile that is full with the hash over it in the tile above,
// and all of them with the root. Before it reads a tile it waits for pace.
func (d Dir) VerifyTiles(ctx context.Context, t checkpoint.Tree, pace func(context.Context) error) error {
	for level := 1; t.Size>>(layout.TileHeight*level) > 0; level++ {
		var above []byte
		for index := range t.Size >> (layout.TileHeight * level) {
			if err := pace(ctx); err != nil {
				return fmt.Errorf("checking the tiles: %w", err)
			}
			tile, err := d.hashes(level-1, index, t.Size)
			if err == nil && index%layout.TileWidth == 0 {
				above, err = d.hashes(level, index/layout.TileWidth, t.Size)
			}
			if err != nil {
				return err
			}
			if want := above[index%layout.TileWidth*32:][:32]; !bytes.Equal(tileHash(tile), want) {
				return fmt.Errorf("hash tile %d of level %d is damaged: its hash is not the one in the tile above it", index, level-1)
			}
		}
	}
	return d.VerifyRoot(ctx, t)
}

// GrewFrom verifies that the tree now has old as its beginning: the consistency
// proof of RFC 6962 §2.1.2, made from the tiles.
func (d Dir) GrewFrom(ctx context.Context, old, now checkpoint.Tree) error {
	switch {
	case old.Size > now.Size:
		return fmt.Errorf("the log has %d entries, but had %d before: an older copy", now.Size, old.Size)
	case old.Size == 0:
		return nil
	case old.Size == now.Size:
		if !bytes.Equal(old.Root, now.Root) {
			return fmt.Errorf("the log of %d entries has another root than before: it was forked", now.Size)
		}
		return nil
	}
	hashes, err := d.Consistency(ctx, old.Size, now.Size, now.Size)
	if err != nil {
		return err
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, now.Size, hashes, old.Root, now.Root); err != nil {
		return fmt.Errorf("the log of %d entries does not continue that of %d: it was forked: %w", now.Size, old.Size, err)
	}
	return nil
}

// Consistency is the proof between two sizes, read from the tiles of a log of the size given.
func (d Dir) Consistency(ctx context.Context, first, second, size uint64) (hashes [][]byte, err error) {
	builder, err := client.NewProofBuilder(ctx, size, d.tiles(size))
	if err == nil {
		hashes, err = builder.ConsistencyProof(ctx, first, second)
	}
	if err != nil {
		return nil, fmt.Errorf("making the consistency proof from %d to %d: %w", first, second, err)
	}
	return hashes, nil
}

// Inclusion is the audit path of an entry in the tree of the first entries (RFC 6962
// §2.1.1), read from the tiles of a log of the size given: those of the smaller tree may
// never have been written.
func (d Dir) Inclusion(ctx context.Context, index, first, size uint64) (hashes [][]byte, err error) {
	builder, err := client.NewProofBuilder(ctx, first, d.tiles(size))
	if err == nil {
		hashes, err = builder.InclusionProof(ctx, index)
	}
	if err != nil {
		return nil, fmt.Errorf("making the inclusion proof of %d: %w", index, err)
	}
	return hashes, nil
}

// Rehash gives the entries of a data tile, which it has compared with the hashes over it in
// the tree: a bit that flips on disk would otherwise be copied on when the tile grows.
func (d Dir) Rehash(index, size uint64) ([]Leaf, error) {
	leaves, err := d.Bundle(index, size)
	if err != nil {
		return nil, err
	}
	hashes, err := d.hashes(0, index, size)
	if err != nil {
		return nil, err
	}
	issuers := d.Issuers() // reads each file once
	for i, l := range leaves {
		err := l.checkPrecertificate(issuers)
		if err == nil && !bytes.Equal(l.Hash(), hashes[i*32:][:32]) {
			err = errors.New("its hash is not the one in the tree")
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d is damaged: %w", index*layout.EntryBundleWidth+uint64(i), err)
		}
	}
	return leaves, nil
}

// Entry is an entry that has its place in the log.
type Entry struct {
	Raw  []byte // as a data tile has it
	Hash []byte // of its leaf
}

// Grow writes the tiles of a log of size entries that grows by those given, durable
// when it returns. What it writes beside full tiles that are there already is the same
// again, so that it may be cut short anywhere and tried anew. The state is not its own.
func (d Dir) Grow(ctx context.Context, size uint64, entries []Entry) error {
	raws, hashes := make([][]byte, len(entries)), make([][]byte, len(entries))
	for i, e := range entries {
		raws[i], hashes[i] = e.Raw, e.Hash
	}
	if _, err := d.extend(ctx, DataLevel, size, size, raws); err != nil {
		return err
	}
	for level := 0; len(hashes) > 0; level++ {
		var err error
		if hashes, err = d.extend(ctx, level, size>>(layout.TileHeight*level), size, hashes); err != nil {
			return err
		}
	}
	return nil
}

// extend puts parts behind the first have of a level, and gives the hashes of the
// tiles that are full with them, which belong to the level above.
func (d Dir) extend(ctx context.Context, level int, have, size uint64, parts [][]byte) (above [][]byte, err error) {
	for len(parts) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("writing tiles: %w", err)
		}
		t := TilePath{Level: level, Index: have / layout.TileWidth, Width: uint8(have % layout.TileWidth)}
		var tile []byte
		if t.Width > 0 {
			if tile, err = d.Tile(t, size); err != nil {
				return nil, fmt.Errorf("reading tile %s: %w", t.Name(), err)
			}
		}
		n := min(layout.TileWidth-int(t.Width), len(parts))
		tile = append(tile, bytes.Join(parts[:n], nil)...)
		have, parts = have+uint64(n), parts[n:]
		t.Width = uint8(have % layout.TileWidth)
		if err := d.Put(tile, t.Name()); err != nil {
			return nil, err
		}
		if level != DataLevel && t.Width == 0 {
			above = append(above, tileHash(tile))
		}
	}
	return above, nil
}

// tileHash is the hash over a full hash tile.
func tileHash(tile []byte) []byte {
	width := rfc6962.DefaultHasher.Size()
	if len(tile) <= width {
		return tile
	}
	half := len(tile) / 2
	return rfc6962.DefaultHasher.HashChildren(tileHash(tile[:half]), tileHash(tile[half:]))
}

// Collect removes the partial tiles of tiles that are full in a tree of to entries and
// weren't in one of from entries. Readers of an older tree get the beginning of the full one.
func (d Dir) Collect(from, to uint64) error {
	for level := DataLevel; level <= MaxLevel; level++ {
		height := layout.TileHeight * (max(level, 0) + 1)
		for index := from >> height; index < to>>height; index++ {
			if err := os.RemoveAll(d.Path(TilePath{Level: level, Index: index}.Name()) + ".p"); err != nil {
				return fmt.Errorf("removing partial tiles: %w", err)
			}
		}
	}
	return nil
}
