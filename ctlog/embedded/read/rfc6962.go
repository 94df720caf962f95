package read

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/tessera/api/layout"

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
		path, err := a.o.Dir.Inclusion(ctx, index, size, head.Size)
		return ct.GetProofByHashResponse{LeafIndex: int64(index), AuditPath: append([][]byte{}, path...)}, err
	}, "tree_size")(w, r, p)
}

// getEntryAndProof is RFC 6962 §4.8.
func (a *API) getEntryAndProof(ctx context.Context, head checkpoint.Head, numbers []uint64, p *Place) (any, error) {
	index, size := numbers[0], numbers[1]
	if index >= size || size > head.Size {
		return nil, BadRequest("want leaf_index < tree_size <= the published tree size, %d", head.Size)
	}
	path, err := a.o.Dir.Inclusion(ctx, index, size, head.Size)
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

// An answer to get-entries is smaller than what may be asked for (RFC 6962 §4.6 leaves
// that to the log): it ends with a data tile, after maxEntries, or before the entry
// that would make it larger than maxEntryBytes, but for the first.
const (
	maxEntries    = 128
	maxEntryBytes = 512 << 10 // of entries and their chains, a quarter less than in JSON
)

// entryCopies is how often the bytes of one entry are in memory while it is sent: as it
// was read, as leaf and extra data, and once more where they are put together.
const entryCopies = 5

// getEntries is RFC 6962 §4.6. The tile is read twice, one entry at a time: what is
// wrong with it is found before the answer begins, and then all that is held is one
// entry, however slowly the answer is taken.
func (a *API) getEntries(w http.ResponseWriter, r *http.Request, p *Place) error {
	numbers, err := numbersOf(r, "start", "end")
	if err != nil {
		return err
	}
	head, err := a.o.Head()
	if err != nil {
		return err
	}
	start, end := numbers[0], numbers[1]
	if start > end || start >= head.Size {
		return BadRequest("want start <= end and start < the published tree size, %d", head.Size)
	}
	if err := p.compute(r.Context()); err != nil {
		return err
	}
	defer p.idle()
	var length counter
	largest, read, err := a.writeEntries(bufio.NewWriter(&length), head.Size, start, min(end, head.Size-1))
	p.idle()
	if err != nil {
		return err
	}
	if err := p.Take(entryCopies * largest); err != nil {
		return err
	}
	if err := p.spend(r.Context(), read+int64(length)); err != nil {
		return err
	}
	LimitTime(w, int64(length))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", cacheNever)
	w.Header().Set("Content-Length", strconv.FormatInt(int64(length), 10))
	if r.Method == http.MethodHead {
		return nil
	}
	if err := p.compute(r.Context()); err != nil {
		return err
	}
	network := &network{to: w, place: p, ctx: r.Context()}
	_, _, err = a.writeEntries(bufio.NewWriterSize(network, readBytes/4), head.Size, start, min(end, head.Size-1))
	if err != nil && network.err == nil { // it isn't the reader who went away; its length shows that the answer isn't whole
		a.o.Logger.ErrorContext(r.Context(), "serving the log", slog.String("path", r.URL.Path), slog.Any("error", err))
	}
	return nil
}

// counter counts the bytes of an answer.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// errEnough ends the reading of entries early.
var errEnough = errors.New("the answer is full")

// writeEntries writes the entries from start to end, as far as one answer goes. It tells the
// bytes of the largest one with its chain, and of all that were read for it, those before
// it included.
func (a *API) writeEntries(w *bufio.Writer, size, start, end uint64) (largest int, read int64, err error) {
	text := func(name string, raw []byte) {
		_, _ = w.WriteString(name)                                                // the writer keeps its error
		_, _ = w.Write(base64.StdEncoding.AppendEncode(w.AvailableBuffer(), raw)) // where there is room, in its place
	}
	count, total, separator := 0, 0, `{"entries":[`
	read, err = a.eachEntry(size, start, end, func(leaf logdir.Leaf) error {
		chain, err := a.chain(leaf)
		if err != nil {
			return err
		}
		bytes := leafBytes(leaf, chain)
		largest = max(largest, bytes) // one that is left out is read as well
		if count > 0 && (count == maxEntries || total+bytes > maxEntryBytes) {
			return errEnough
		}
		text(separator+`{"leaf_input":"`, leaf.MerkleTreeLeaf())
		text(`","extra_data":"`, leaf.ExtraData(chain))
		_, err = w.WriteString(`"}`)
		count, total, separator = count+1, total+bytes, ","
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return largest, read, err
	}
	_, _ = w.WriteString(`]}`)
	return largest, read, w.Flush()
}

// eachEntry calls yield with the entries from start to end, or to the end of the data
// tile that start is in, of a log of the size given. It tells how many bytes it read.
func (a *API) eachEntry(size, start, end uint64, yield func(logdir.Leaf) error) (read int64, err error) {
	tile := logdir.TilePath{Level: logdir.DataLevel, Index: start / layout.EntryBundleWidth}
	first := tile.Index * layout.EntryBundleWidth
	tile.Width = layout.PartialTileSize(0, tile.Index, size)
	f, length, err := a.o.Dir.OpenTile(tile, size)
	if err != nil {
		return 0, fmt.Errorf("reading data tile %d: %w", tile.Index, missing(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	leaves := logdir.NewLeafReader(io.NewSectionReader(f, 0, length), first)
	for index := first; index <= min(end, first+layout.EntryBundleWidth-1); index++ {
		leaf, err := leaves.Next()
		if err != nil {
			return read, fmt.Errorf("reading data tile %d: %w", tile.Index, err)
		}
		read += int64(len(leaf.Raw))
		if index < start {
			continue
		}
		if err := yield(leaf); err != nil {
			return read, err
		}
	}
	return read, nil
}

// chain is the certificates above an entry.
func (a *API) chain(leaf logdir.Leaf) ([][]byte, error) {
	chain := make([][]byte, 0, len(leaf.Fingerprints))
	for _, f := range leaf.Fingerprints {
		der, err := a.o.Issuers.Get([32]byte(f))
		if err != nil {
			return nil, fmt.Errorf("the issuer %x of an entry: %w", f, missing(err))
		}
		chain = append(chain, der)
	}
	return chain, nil
}

// missing makes an error of our own of a file that isn't there but should be, which
// would be the reader's mistake otherwise.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("it is missing")
	}
	return err
}

// leafBytes is how many bytes an entry has with its chain.
func leafBytes(leaf logdir.Leaf, chain [][]byte) int {
	bytes := len(leaf.Raw)
	for _, der := range chain {
		bytes += len(der)
	}
	return bytes
}

// network is where an answer goes. While the reader is waited for, others compute.
type network struct {
	to    io.Writer
	place *Place
	ctx   context.Context //nolint:containedctx // of the request that is answered
	err   error           // of the last write
}

func (n *network) Write(b []byte) (written int, err error) {
	n.place.idle()
	written, n.err = n.to.Write(b)
	if n.err == nil {
		n.err = n.place.compute(n.ctx)
	}
	return written, n.err
}
