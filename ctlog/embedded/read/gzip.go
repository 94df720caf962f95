package embedded

import (
	"container/list"
	"sync"
)

// maxPacked bounds the compressed tiles that are remembered, in bytes: some forty.
const maxPacked = 8 << 20

// packed remembers the data tiles that were compressed last. A tile that is full
// never changes, and its readers come in droves: a monitor reads all of them, and
// there are several. Partial ones aren't kept; nobody asks for one for long.
type packed struct {
	mu     sync.Mutex
	known  map[uint64]*list.Element
	recent list.List // of packedTile, the last one asked for in front
	bytes  int
}

type packedTile struct {
	index uint64
	data  []byte
}

// get is a tile's data compressed.
func (p *packed) get(t tilePath, data []byte) ([]byte, error) {
	if t.width != 0 {
		return compress(data)
	}
	if known := p.find(t.index); known != nil {
		return known, nil
	}
	small, err := compress(data) // not under the lock: two may do the same work once
	if err == nil {
		p.keep(t.index, small)
	}
	return small, err
}

func (p *packed) find(index uint64) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.known[index]
	if e == nil {
		return nil
	}
	p.recent.MoveToFront(e)
	return e.Value.(packedTile).data //nolint:forcetypeassert // nothing else is put in
}

func (p *packed) keep(index uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = make(map[uint64]*list.Element)
	}
	if p.known[index] != nil {
		return
	}
	p.known[index] = p.recent.PushFront(packedTile{index, data})
	for p.bytes += len(data); p.bytes > maxPacked; {
		out := p.recent.Remove(p.recent.Back()).(packedTile) //nolint:forcetypeassert // nothing else is put in
		delete(p.known, out.index)
		p.bytes -= len(out.data)
	}
}
