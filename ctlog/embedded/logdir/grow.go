package logdir

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

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
