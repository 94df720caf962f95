package read

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"

	ct "github.com/google/certificate-transparency-go"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// answerer makes the body of an answer from the published checkpoint and the
// numbers that were asked with.
type answerer func(ctx context.Context, head checkpoint.Head, numbers []uint64, p *Place) (body any, err error)

// query is a read with decimal parameters.
func (a *API) query(cache string, answer answerer, parameters ...string) HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, p *Place) error {
		numbers, err := numbersOf(r, parameters...)
		if err != nil {
			return err
		}
		head, err := a.o.Head()
		if err != nil {
			return err
		}
		if len(parameters) > 0 { // a tree head has none, and costs nothing
			if err := p.spend(r.Context(), proofCost); err != nil {
				return err
			}
		}
		if err := p.compute(r.Context()); err != nil {
			return err
		}
		body, err := answer(r.Context(), head, numbers, p)
		p.idle()
		if err != nil {
			return err
		}
		return WriteJSON(w, cache, body)
	}
}

// numbersOf reads the decimal parameters of a query, each of which must be there once.
func numbersOf(r *http.Request, parameters ...string) ([]uint64, error) {
	query, numbers := r.URL.Query(), make([]uint64, len(parameters))
	for i, name := range parameters {
		values := query[name]
		if len(values) != 1 {
			return nil, BadRequest("%s: required, once", name)
		}
		var err error
		if numbers[i], err = strconv.ParseUint(values[0], 10, 63); err != nil {
			return nil, BadRequest("%s: want a decimal number", name)
		}
	}
	return numbers, nil
}

// getSTH is RFC 6962 §4.3, from the same checkpoint that the static API serves:
// its note signature is the tree head's.
func (a *API) getSTH(_ context.Context, head checkpoint.Head, _ []uint64, _ *Place) (any, error) {
	return ct.GetSTHResponse{TreeSize: head.Size, Timestamp: head.Timestamp, SHA256RootHash: head.Root, TreeHeadSignature: head.Signature}, nil
}

// getConsistency is RFC 6962 §4.4.
func (a *API) getConsistency(ctx context.Context, head checkpoint.Head, numbers []uint64, _ *Place) (any, error) {
	first, second := numbers[0], numbers[1]
	if first > second || second > head.Size {
		return nil, BadRequest("want first <= second <= the published tree size, %d", head.Size)
	}
	if first == 0 || first == second { // RFC 6962 §2.1.2: the proof is empty
		return ct.GetSTHConsistencyResponse{Consistency: [][]byte{}}, nil
	}
	path, err := a.o.Dir.Consistency(ctx, first, second, head.Size)
	return ct.GetSTHConsistencyResponse{Consistency: path}, err
}

// getProofByHash is RFC 6962 §4.5.
func (a *API) getProofByHash(w http.ResponseWriter, r *http.Request, p *Place) error {
	hash, err := base64.StdEncoding.DecodeString(r.URL.Query().Get("hash"))
	if err != nil || len(hash) != 32 {
		return BadRequest("hash: want the base64 of 32 bytes")
	}
	return a.query(cacheForever, func(ctx context.Context, head checkpoint.Head, numbers []uint64, _ *Place) (any, error) {
		size := numbers[0]
		if size == 0 || size > head.Size {
			return nil, BadRequest("want 1 <= tree_size <= the published tree size, %d", head.Size)
		}
		index, found, err := a.hashes.find(ctx, a.o.Dir, [32]byte(hash), head.Size)
		if err != nil {
			return nil, err
		}
		if !found || index >= size {
			return nil, errNotFound
		}
		path, err := a.o.Dir.Inclusion(ctx, index, size)
		return ct.GetProofByHashResponse{LeafIndex: int64(index), AuditPath: append([][]byte{}, path...)}, err
	}, "tree_size")(w, r, p)
}

// getEntryAndProof is RFC 6962 §4.8.
func (a *API) getEntryAndProof(ctx context.Context, head checkpoint.Head, numbers []uint64, p *Place) (any, error) {
	index, size := numbers[0], numbers[1]
	if index >= size || size > head.Size {
		return nil, BadRequest("want leaf_index < tree_size <= the published tree size, %d", head.Size)
	}
	path, err := a.o.Dir.Inclusion(ctx, index, size)
	if err != nil {
		return nil, err
	}
	var answer ct.GetEntryAndProofResponse
	_, err = a.eachEntry(head.Size, index, index, func(leaf logdir.Leaf) error {
		chain, err := a.chain(leaf)
		if err != nil {
			return err
		}
		if err := p.Take(entryCopies * leafBytes(leaf, chain)); err != nil {
			return err
		}
		answer = ct.GetEntryAndProofResponse{LeafInput: leaf.MerkleTreeLeaf(), ExtraData: leaf.ExtraData(chain), AuditPath: append([][]byte{}, path...)}
		return nil
	})
	return answer, err
}

// getRoots is RFC 6962 §4.7.
func (a *API) getRoots(w http.ResponseWriter, _ *http.Request, _ *Place) error {
	return WriteJSON(w, cacheNever, struct {
		Certificates [][]byte `json:"certificates"` // base64 in JSON
	}{append([][]byte{}, a.o.Roots()...)})
}

// WriteJSON answers with a body in JSON.
func WriteJSON(w http.ResponseWriter, cache string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	_, _ = w.Write(raw) // an error here is the reader gone away
	return nil
}

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
		x.runs[last-1] = slices.Concat(x.runs[last-1], x.runs[last])
		slices.Sort(x.runs[last-1])
		x.runs = x.runs[:last]
	}
	return err
}
