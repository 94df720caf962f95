package read

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/tessera/api/layout"
)

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
	limitTime(w, int64(length))
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
		if count > 0 && (count == maxEntries || total+bytes > maxEntryBytes) {
			return errEnough
		}
		text(separator+`{"leaf_input":"`, leaf.MerkleTreeLeaf())
		text(`","extra_data":"`, leaf.ExtraData(chain))
		_, err = w.WriteString(`"}`)
		largest, count, total, separator = max(largest, bytes), count+1, total+bytes, ","
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
