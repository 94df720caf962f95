package read

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// hashIndex finds an entry by its leaf hash, for get-proof-by-hash. It is made
// from the tiles when it is first asked, and only grows with later questions:
// eight bytes an entry, and nothing for a log that nobody asks. Nothing of it is
// stored, so it can't disagree with the log for longer than a process lives.
type hashIndex struct {
	mu   sync.Mutex
	size uint64
	// runs are sorted, each more than twice as long as the next: there are few of
	// them, and an entry is copied only a few times however long the log grows.
	runs [][]pair
}

// pair is the first four bytes of a leaf hash and, in its lower half, the entry's
// index: enough to find the few candidates, which are compared with the log itself.
type pair uint64

// maxIndexed is how many entries a pair's lower half can tell apart: a shard of a
// year has fewer, and what comes after is not found.
const maxIndexed = 1 << 32

func makePair(hash [32]byte, index uint64) pair {
	return pair(uint64(binary.BigEndian.Uint32(hash[:]))<<32 | index)
}

// find looks for the hash among the first size entries.
func (x *hashIndex) find(ctx context.Context, d logdir.Dir, hash [32]byte, size uint64) (uint64, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.grow(ctx, d, min(size, maxIndexed)); err != nil {
		return 0, false, err
	}
	from, to := makePair(hash, 0), makePair(hash, maxIndexed-1)
	for _, pairs := range x.runs {
		at, _ := slices.BinarySearch(pairs, from)
		for ; at < len(pairs) && pairs[at] <= to; at++ {
			index := uint64(pairs[at]) % maxIndexed
			if index >= size {
				continue
			}
			match := false
			err := d.LeafHashes(ctx, index, index+1, size, func(_ uint64, got [32]byte) { match = got == hash })
			if err != nil || match {
				return index, match, err
			}
		}
	}
	return 0, false, nil
}

// grow reads the entries up to size. What was read before an error stays.
func (x *hashIndex) grow(ctx context.Context, d logdir.Dir, size uint64) error {
	if size <= x.size {
		return nil
	}
	added := make([]pair, 0, size-x.size)
	err := d.LeafHashes(ctx, x.size, size, size, func(index uint64, hash [32]byte) {
		added = append(added, makePair(hash, index))
		x.size = index + 1
	})
	if err != nil { // the room that was meant for the rest is given back
		added = slices.Clone(added)
	}
	slices.Sort(added)
	x.runs = append(x.runs, added)
	for last := len(x.runs) - 1; last > 0 && len(x.runs[last-1]) <= 2*len(x.runs[last]); last-- {
		x.runs[last-1] = merge(x.runs[last-1], x.runs[last])
		x.runs = x.runs[:last]
	}
	return err
}

// merge is the sorted union of two sorted lists.
func merge(a, b []pair) []pair {
	all := make([]pair, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] <= b[0] {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}
