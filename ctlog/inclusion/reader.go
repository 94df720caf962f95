package inclusion

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// brokenError is what no log may answer: a contradiction of its own signature.
type brokenError struct{ what string }

func (e *brokenError) Error() string { return e.what }

// look is one reading of a log, of what carries a leaf index through the static-ct API,
// of all else through RFC 6962: the heads are fetched once, tiles as needed.
type look struct {
	*remote.Reader
	checkpoint, sth *checkpoint.Head
	tiles           map[tileKey][]byte // hash tiles that are shown to be in the checkpoint's tree
}

type tileKey struct {
	level int
	index int64
}

// once fetches a head that isn't known yet.
func once(ctx context.Context, known **checkpoint.Head, fetch func(context.Context) (checkpoint.Head, error)) error {
	if *known != nil {
		return nil
	}
	head, err := fetch(ctx)
	if err == nil {
		*known = &head
	}
	return err
}

// holds reports whether the log shows the entry, with a proof up to a tree head
// that it signed. The error is a *brokenError when it shows something else.
func (l *look) holds(ctx context.Context, p promise) (bool, error) {
	if p.Index != nil {
		return l.holdsAt(ctx, p.Leaf, *p.Index)
	}
	if err := once(ctx, &l.sth, l.STH); err != nil {
		return false, err
	}
	if l.sth.Size == 0 {
		return false, nil
	}
	raw, err := l.Get(ctx, "/ct/v1/get-proof-by-hash?hash="+url.QueryEscape(base64.StdEncoding.EncodeToString(p.Leaf[:]))+
		"&tree_size="+strconv.FormatUint(l.sth.Size, 10), remote.MaxAnswer)
	if errors.Is(err, remote.ErrAbsent) {
		return false, nil
	}
	var answer ct.GetProofByHashResponse
	if err == nil {
		err = json.Unmarshal(raw, &answer)
	}
	if err != nil {
		return false, fmt.Errorf("asking for a proof: %w", err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(answer.LeafIndex), l.sth.Size, p.Leaf[:], answer.AuditPath, l.sth.Root); err != nil {
		return false, &brokenError{"the log's proof for the entry does not hold: " + err.Error()}
	}
	return true, nil
}

// maxSize is how many entries a log with leaf indices has at most (c2sp.org/static-ct-api: uint40).
const maxSize = 1 << 40

// holdsAt is holds through the static-ct API.
func (l *look) holdsAt(ctx context.Context, leaf [32]byte, index uint64) (bool, error) {
	if err := once(ctx, &l.checkpoint, l.Checkpoint); err != nil {
		return false, err
	}
	switch {
	case l.checkpoint.Size > maxSize:
		return false, fmt.Errorf("the log has %d entries, more than leaf indices have room for", l.checkpoint.Size)
	case index >= l.checkpoint.Size:
		return false, nil
	}
	at := tileKey{0, int64(index / layout.TileWidth)}
	if l.tiles[at] == nil {
		tree := tlog.Tree{N: int64(l.checkpoint.Size), Hash: tlog.Hash(l.checkpoint.Root)}
		tiles := &tileReader{look: l, ctx: ctx}
		_, err := tlog.TileHashReader(tree, tiles).ReadHashes([]int64{tlog.StoredHashIndex(0, int64(index))})
		switch {
		case tiles.failed != nil:
			return false, tiles.failed
		case err != nil:
			return false, &brokenError{fmt.Sprintf("the log of %d entries has tiles that don't add up to its root: %v", l.checkpoint.Size, err)}
		}
	}
	if shown := l.tiles[at][index%layout.TileWidth*sha256.Size:]; !bytes.Equal(shown[:sha256.Size], leaf[:]) {
		return false, &brokenError{fmt.Sprintf("the log of %d entries has another entry at %d than its SCT says", l.checkpoint.Size, index)}
	}
	return true, nil
}

// maxTiles is how many tiles are in memory: some 8 MB.
const maxTiles = 1 << 10

// tileReader fetches tiles for one proof, and keeps those that it shows to be right for
// the next ones: there are many of them in one look.
type tileReader struct {
	*look
	ctx    context.Context //nolint:containedctx // of the one proof
	failed error           // why a tile can't be read
}

// Height is that of the tiles.
func (t *tileReader) Height() int { return layout.TileHeight }

// ReadTiles gives the tiles, each as wide as the tree makes it.
func (t *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	all := make([][]byte, len(tiles))
	for i, tile := range tiles {
		width := tile.W * sha256.Size
		if all[i] = t.tiles[tileKey{tile.L, tile.N}]; all[i] != nil {
			continue
		}
		path := logdir.TilePath{Level: tile.L, Index: uint64(tile.N), Width: uint8(tile.W % layout.TileWidth)}
		raw, err := t.Tile(t.ctx, path, layout.TileWidth*sha256.Size)
		if err == nil && len(raw) < width {
			err = fmt.Errorf("%s is cut short", path.Name())
		}
		if err != nil {
			t.failed = err
			return nil, err
		}
		all[i] = raw[:width]
	}
	return all, nil
}

// SaveTiles takes the tiles that were shown to be right.
func (t *tileReader) SaveTiles(tiles []tlog.Tile, all [][]byte) {
	if len(t.tiles) >= maxTiles { // a log chooses the indices of its SCTs, and so the tiles that are read
		clear(t.tiles)
	}
	for i, tile := range tiles {
		t.tiles[tileKey{tile.L, tile.N}] = all[i]
	}
}
