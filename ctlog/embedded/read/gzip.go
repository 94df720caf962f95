package read

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// Packing costs some ten milliseconds a tile. So one is packed at a time, each once
// for all who ask, and no more than a fifth of a processor's time goes into it; who
// asks while that is used up gets the tile as it is.
const (
	maxPacked     = 2 << 20  // bytes of a tile that is packed; most have half a MB
	packingBytes  = 4 << 20  // what packing one holds at most
	maxCompressed = 8 << 20  // bytes of packed tiles that are remembered: some forty
	packRate      = 16 << 20 // bytes a second
	packBurst     = 2 * maxPacked
)

// gzipCache remembers the data tiles that were packed last. Their readers come in
// droves: a monitor reads all of them, and there are several.
type gzipCache struct {
	mu    sync.Mutex
	tiles *simplelru.LRU[gzipKey, []byte]
	bytes int // of all tiles
}

func newGzipCache() *gzipCache {
	c := new(gzipCache)
	c.tiles, _ = simplelru.NewLRU(maxCompressed>>10, func(_ gzipKey, data []byte) { c.bytes -= len(data) }) // it fails for a size below 1
	return c
}

type gzipKey struct {
	dir  logdir.Dir
	tile logdir.TilePath
}

// pack packs a tile of the length given, for all who ask for it from now on; nil when it
// has to be sent as it is.
func (b *Budget) pack(key gzipKey, tile io.Reader, length int64) ([]byte, error) {
	if length > maxPacked || !b.packer.TryLock() {
		return nil, nil
	}
	defer b.packer.Unlock()
	if known := b.packed.find(key); known != nil { // another was faster
		return known, nil
	}
	if !b.pace.AllowN(time.Now(), int(length)) {
		return nil, nil
	}
	small, err := compress(tile)
	if err == nil {
		b.packed.keep(key, small)
	}
	return small, err
}

func (c *gzipCache) find(key gzipKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, _ := c.tiles.Get(key)
	return data
}

func (c *gzipCache) keep(key gzipKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tiles.Add(key, data)
	for c.bytes += len(data); c.bytes > maxCompressed; {
		c.tiles.RemoveOldest()
	}
}

func compress(data io.Reader) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compressing a tile: %w", err)
	}
	return bytes.Clone(b.Bytes()), nil // without the room that was left
}
