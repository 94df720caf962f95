package read

import (
	"bytes"
	"compress/gzip"
	"container/list"
	"fmt"
	"sync"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// maxCompressed bounds the compressed tiles that are remembered, in bytes: some forty.
const maxCompressed = 8 << 20

// gzipCache remembers the data tiles that were compressed last. A tile that is full
// never changes, and its readers come in droves: a monitor reads all of them, and
// there are several. Partial ones aren't kept; nobody asks for one for long.
type gzipCache struct {
	mu     sync.Mutex
	known  map[uint64]*list.Element
	recent list.List // of gzipTile, the last one asked for in front
	bytes  int
}

type gzipTile struct {
	index uint64
	data  []byte
}

// get is a tile's data compressed.
func (c *gzipCache) get(t logdir.TilePath, data []byte) ([]byte, error) {
	if t.Width != 0 {
		return compress(data)
	}
	if known := c.find(t.Index); known != nil {
		return known, nil
	}
	small, err := compress(data) // not under the lock: two may do the same work once
	if err == nil {
		c.keep(t.Index, small)
	}
	return small, err
}

func (c *gzipCache) find(index uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.known[index]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(gzipTile).data //nolint:forcetypeassert // nothing else is put in
}

func (c *gzipCache) keep(index uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[uint64]*list.Element)
	}
	if c.known[index] != nil {
		return
	}
	c.known[index] = c.recent.PushFront(gzipTile{index, data})
	for c.bytes += len(data); c.bytes > maxCompressed; {
		out := c.recent.Remove(c.recent.Back()).(gzipTile) //nolint:forcetypeassert // nothing else is put in
		delete(c.known, out.index)
		c.bytes -= len(out.data)
	}
}

func compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compressing a tile: %w", err)
	}
	return b.Bytes(), nil
}
