package follow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// What one batch may hold in memory of a log: so many data tiles, or answers to
// get-entries, of so many bytes.
const (
	batchTiles = 8
	maxTile    = 2 << 20 // an entry of a certificate authority has some 4 kB, with its precertificate
	maxAnswer  = 1 << 20 // a checkpoint, a proof
	userAgent  = "mayfly-monitor"
	timeout    = 30 * time.Second // of one request
)

// MaxBytes bounds what following one log holds in memory.
const MaxBytes = batchTiles * maxTile

// errAbsent is a 404 or 410 for what the log signed.
var errAbsent = errors.New("the log answers that it isn't there")

// errMalformed is an answer with entries in no form that a log may give them.
var errMalformed = errors.New("not what a log may answer")

// source reads one log through whichever API it has.
type source struct {
	Log
	signed note.Verifier
	static bool   // whether it has the static-ct API, as its head was read last
	status Status // guarded by the Follower's mu
}

func newSource(l Log) (*source, error) {
	l.URL, l.Client = cmp.Or(strings.TrimSuffix(l.URL, "/"), l.Description.URL), cmp.Or(l.Client, http.DefaultClient)
	v, err := checkpoint.VerifierOf(l.Description)
	return &source{Log: l, signed: v, status: Status{URL: l.Description.URL}}, err
}

// head is the log's checkpoint or signed tree head, verified.
func (s *source) head(ctx context.Context) (checkpoint.Head, error) {
	raw, err := s.get(ctx, "/checkpoint", maxAnswer)
	if s.static = err == nil; s.static {
		return checkpoint.Open(raw, s.signed)
	}
	if errors.Is(err, errAbsent) {
		raw, err = s.get(ctx, "/ct/v1/get-sth", maxAnswer) // RFC 6962 §4.3
	}
	if err != nil {
		return checkpoint.Head{}, err
	}
	return checkpoint.FromSTH(raw, s.signed)
}

// consistency is the log's proof from a tree of a size to its head (RFC 6962 §2.1.2).
func (s *source) consistency(ctx context.Context, size uint64, head checkpoint.Head) ([][]byte, error) {
	if !s.static {
		raw, err := s.get(ctx, fmt.Sprintf("/ct/v1/get-sth-consistency?first=%d&second=%d", size, head.Size), maxAnswer)
		var answer struct {
			Consistency [][]byte `json:"consistency"`
		}
		if err == nil {
			err = json.Unmarshal(raw, &answer)
		}
		return answer.Consistency, err
	}
	var failed error // the builder's errors don't wrap it
	builder, err := s.proofs(ctx, head.Size, &failed)
	if err != nil {
		return nil, err
	}
	path, err := builder.ConsistencyProof(ctx, size, head.Size)
	if failed != nil {
		err = failed
	}
	return path, err
}

// proofs makes proofs out of hash tiles. What a tile couldn't be had for goes into failed.
func (s *source) proofs(ctx context.Context, size uint64, failed *error) (*client.ProofBuilder, error) {
	return client.NewProofBuilder(ctx, size, func(ctx context.Context, level, index uint64, p uint8) (tile []byte, err error) {
		tile, *failed = s.get(ctx, "/"+layout.TilePath(level, index, p), maxAnswer)
		if p != 0 && errors.Is(*failed, errAbsent) { // a log may keep the full tile alone
			tile, *failed = s.get(ctx, "/"+layout.TilePath(level, index, 0), maxAnswer)
		}
		return tile, *failed
	})
}

// leaves are the next MerkleTreeLeafs (RFC 6962 §3.4) from an index on, at least one.
func (s *source) leaves(ctx context.Context, from uint64, head checkpoint.Head) ([][]byte, error) {
	if !s.static {
		return s.entries(ctx, from, head.Size)
	}
	first, last := from/layout.EntryBundleWidth, (head.Size-1)/layout.EntryBundleWidth
	tiles := make([][]logdir.Leaf, min(batchTiles, last-first+1))
	group, ctx := errgroup.WithContext(ctx)
	for i := range tiles {
		group.Go(func() (err error) {
			tiles[i], err = s.dataTile(ctx, first+uint64(i), head.Size)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var all [][]byte
	for _, tile := range tiles {
		for _, l := range tile {
			all = append(all, l.MerkleTreeLeaf())
		}
	}
	return all[from%layout.EntryBundleWidth:], nil
}

// entries is get-entries (RFC 6962 §4.6), which may give fewer than were asked for.
func (s *source) entries(ctx context.Context, from, size uint64) ([][]byte, error) {
	raw, err := s.get(ctx, fmt.Sprintf("/ct/v1/get-entries?start=%d&end=%d", from, min(size, from+batchTiles*layout.EntryBundleWidth)-1), MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("entries from %d on: %w", from, err)
	}
	var answer struct {
		Entries []struct {
			Leaf []byte `json:"leaf_input"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || len(answer.Entries) == 0 || uint64(len(answer.Entries)) > size-from {
		return nil, fmt.Errorf("entries from %d on: %w", from, errMalformed)
	}
	all := make([][]byte, len(answer.Entries))
	for i, e := range answer.Entries {
		all[i] = e.Leaf
	}
	return all, nil
}

// get fetches a path below the log's URL: at most limit bytes.
func (s *source) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	response, err := s.Client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone:
		return nil, errAbsent
	default:
		return nil, fmt.Errorf("reading %s: the log answered %d", path, response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return body, nil
}

// Entry types (RFC 6962 §3.1).
const (
	entryX509    = 0
	entryPrecert = 1
)

// parseLeaf reads a MerkleTreeLeaf (RFC 6962 §3.4).
func parseLeaf(leaf []byte) (Entry, error) {
	input := cryptobyte.String(leaf)
	var version, kind uint8
	var timestamp uint64
	var entry uint16
	var keyHash []byte
	var certificate, extensions cryptobyte.String
	if !input.ReadUint8(&version) || !input.ReadUint8(&kind) || version != 0 || kind != 0 || // v1, timestamped_entry
		!input.ReadUint64(&timestamp) || !input.ReadUint16(&entry) || entry > entryPrecert ||
		entry == entryPrecert && !input.ReadBytes(&keyHash, 32) ||
		!input.ReadUint24LengthPrefixed(&certificate) || !input.ReadUint16LengthPrefixed(&extensions) || !input.Empty() {
		return Entry{}, errors.New("not a MerkleTreeLeaf with a certificate or a precertificate")
	}
	return Entry{Timestamp: time.UnixMilli(int64(timestamp)), Precert: entry == entryPrecert, Certificate: certificate}, nil // #nosec G115 -- shown as it is
}
