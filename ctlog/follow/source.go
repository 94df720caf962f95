package follow

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// What one batch may hold in memory of a log: so many data tiles, or answers to
// get-entries, of so many bytes.
const (
	batchTiles = 8
	maxTile    = 2 << 20 // an entry of a certificate authority has some 4 kB, with its precertificate
)

// MaxBytes bounds what following one log holds in memory.
const MaxBytes = batchTiles * maxTile

// errMalformed is an answer with entries in no form that a log may give them.
var errMalformed = errors.New("not what a log may answer")

// source is a log, and how the following of it stands.
type source struct {
	*remote.Reader
	status Status // guarded by the Follower's mu
}

// consistency is the log's proof from a tree of a size to its head (RFC 6962 §2.1.2).
func (s *source) consistency(ctx context.Context, size uint64, head remote.Head) ([][]byte, error) {
	if !head.Static {
		raw, err := s.Get(ctx, fmt.Sprintf("/ct/v1/get-sth-consistency?first=%d&second=%d", size, head.Size), remote.MaxAnswer)
		var answer ct.GetSTHConsistencyResponse
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
		tile, *failed = s.Tile(ctx, logdir.TilePath{Level: int(level), Index: index, Width: p}, remote.MaxAnswer)
		return tile, *failed
	})
}

// leaves are the next MerkleTreeLeafs (RFC 6962 §3.4) from an index on, at least one.
func (s *source) leaves(ctx context.Context, from uint64, head remote.Head) ([][]byte, error) {
	var all [][]byte
	if !head.Static {
		entries, err := s.entries(ctx, from, min(head.Size, from+batchTiles*layout.EntryBundleWidth), MaxBytes)
		for _, e := range entries {
			all = append(all, e.LeafInput)
		}
		return all, err
	}
	first, last := from/layout.EntryBundleWidth, (head.Size-1)/layout.EntryBundleWidth
	tiles := make([][]logdir.Leaf, min(batchTiles, last-first+1))
	group, ctx := errgroup.WithContext(ctx)
	for i := range tiles {
		group.Go(func() (err error) {
			tiles[i], err = s.tile(ctx, first+uint64(i), head.Size)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, tile := range tiles {
		for _, l := range tile {
			all = append(all, l.MerkleTreeLeaf())
		}
	}
	return all[from%layout.EntryBundleWidth:], nil
}

// tile is the entries of a data tile, as many as a log of the size given has in it.
func (s *source) tile(ctx context.Context, index, size uint64) ([]logdir.Leaf, error) {
	tile := logdir.TilePath{Level: logdir.DataLevel, Index: index, Width: layout.PartialTileSize(0, index, size)}
	raw, err := s.Tile(ctx, tile, maxTile)
	if err != nil {
		return nil, err
	}
	leaves, err := logdir.ParseLeaves(raw, index*layout.EntryBundleWidth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", tile.Name(), errMalformed, err)
	}
	want := min(size-index*layout.EntryBundleWidth, layout.EntryBundleWidth)
	if n := len(leaves); n != int(want) && n != layout.EntryBundleWidth { // the full tile may be there alone
		return nil, fmt.Errorf("%s: %w: %d entries, not %d", tile.Name(), errMalformed, n, want)
	}
	return leaves[:want], nil
}

// entries is get-entries (RFC 6962 §4.6), which may give fewer than were asked for: at most
// limit bytes.
func (s *source) entries(ctx context.Context, from, end uint64, limit int64) ([]ct.LeafEntry, error) {
	raw, err := s.Get(ctx, fmt.Sprintf("/ct/v1/get-entries?start=%d&end=%d", from, end-1), limit)
	if err != nil {
		return nil, fmt.Errorf("entries from %d on: %w", from, err)
	}
	var answer ct.GetEntriesResponse
	if err := json.Unmarshal(raw, &answer); err != nil || len(answer.Entries) == 0 || uint64(len(answer.Entries)) > end-from {
		return nil, fmt.Errorf("entries from %d on: %w", from, errMalformed)
	}
	return answer.Entries, nil
}

// parseLeaf reads a MerkleTreeLeaf (RFC 6962 §3.4).
func parseLeaf(leaf []byte) (Entry, error) {
	var version, kind uint8
	var at uint64
	var of uint16
	var certificate, extensions cryptobyte.String
	input := cryptobyte.String(leaf)
	if !input.ReadUint8(&version) || !input.ReadUint8(&kind) || !input.ReadUint64(&at) || !input.ReadUint16(&of) || version != uint8(ct.V1) || kind != uint8(ct.TimestampedEntryLeafType) ||
		of > uint16(ct.PrecertLogEntryType) || of == uint16(ct.PrecertLogEntryType) && !input.Skip(sha256.Size) || // the issuer's key
		!input.ReadUint24LengthPrefixed(&certificate) || certificate.Empty() || !input.ReadUint16LengthPrefixed(&extensions) || !input.Empty() {
		return Entry{}, errors.New("not a MerkleTreeLeaf with a certificate or a precertificate")
	}
	return Entry{Timestamp: time.UnixMilli(int64(at)), Precert: of == uint16(ct.PrecertLogEntryType), Certificate: certificate}, nil // #nosec G115 -- shown as it is
}
