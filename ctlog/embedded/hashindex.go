package embedded

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/transparency-dev/tessera/api/layout"
)

// hashIndex finds an entry by its leaf hash, for get-proof-by-hash. It is made
// from the tiles when it is first asked, and only grows with later questions:
// about 30 bytes an entry, and nothing for a log that nobody asks. Nothing of it
// is stored, so it can't disagree with the log for longer than a process lives.
type hashIndex struct {
	mu   sync.Mutex
	size uint64
	// The first eight bytes of a hash are enough to find a candidate; two entries
	// that share them are both kept.
	first map[uint64]uint64
	more  map[uint64][]uint64
}

// find looks for the hash among the first size entries.
func (x *hashIndex) find(ctx context.Context, s store, hash [32]byte, size uint64) (uint64, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.grow(ctx, s, size); err != nil {
		return 0, false, err
	}
	key := binary.BigEndian.Uint64(hash[:])
	candidates := x.more[key]
	if index, ok := x.first[key]; ok {
		candidates = append([]uint64{index}, candidates...)
	}
	for _, index := range candidates {
		if index >= size {
			continue
		}
		match := false
		err := s.leafHashes(ctx, index, index+1, size, func(_ uint64, got [32]byte) { match = got == hash })
		if err != nil {
			return 0, false, err
		}
		if match {
			return index, true, nil
		}
	}
	return 0, false, nil
}

func (x *hashIndex) grow(ctx context.Context, s store, size uint64) error {
	if x.first == nil {
		x.first, x.more = make(map[uint64]uint64), make(map[uint64][]uint64)
	}
	return s.leafHashes(ctx, x.size, size, size, func(index uint64, hash [32]byte) {
		key := binary.BigEndian.Uint64(hash[:])
		if _, taken := x.first[key]; taken {
			x.more[key] = append(x.more[key], index)
		} else {
			x.first[key] = index
		}
		x.size = index + 1
	})
}

// leafHashes calls yield with the leaf hashes of [from, to), read from the lowest
// hash tiles of a log of the size given.
func (s store) leafHashes(ctx context.Context, from, to, size uint64, yield func(index uint64, hash [32]byte)) error {
	for from < to {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("reading leaf hashes: %w", err)
		}
		tile := from / layout.TileWidth
		raw, err := s.ReadTile(ctx, 0, tile, layout.PartialTileSize(0, tile, size))
		if err != nil {
			return fmt.Errorf("reading hash tile %d: %w", tile, err)
		}
		end := min(to, (tile+1)*layout.TileWidth)
		for ; from < end; from++ {
			at := (from % layout.TileWidth) * 32
			if uint64(len(raw)) < at+32 {
				return fmt.Errorf("hash tile %d is cut short", tile)
			}
			yield(from, [32]byte(raw[at:at+32]))
		}
	}
	return nil
}
