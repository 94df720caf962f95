package embedded

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
)

// Names in a log's directory. Tessera chose those of the state.
const (
	checkpointName = layout.CheckpointPath
	tileDir        = "tile"
	issuerDir      = "issuer"
	stateDir       = ".state"
	treeStateName  = "treeState"
	treeStateLock  = "treeState.lock"
	lockName       = "LOCK"
	aboutName      = "log.v3.json"
	witnessedName  = "checkpoint.witnessed" // the newest checkpoint with its cosignatures, where there are any
)

// store reads the files of a log. It holds nothing open and writes nothing.
type store struct{ dir string }

// tree is a state of the log: how many entries, and the root over them.
type tree struct {
	size uint64
	root []byte
}

// emptyTree is where each log starts (RFC 6962 §2.1: the hash of the empty string).
func emptyTree() tree { return tree{root: rfc6962.DefaultHasher.EmptyRoot()} }

func (s store) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

// exists reports whether something is there under the name; an error that is
// not "no such file" counts as something.
func (s store) exists(names ...string) bool {
	_, err := os.Lstat(s.path(names...))
	return !errors.Is(err, os.ErrNotExist)
}

// treeState is the state that the storage itself goes on from.
func (s store) treeState() (tree, error) {
	raw, err := os.ReadFile(s.path(stateDir, treeStateName))
	if err != nil {
		return tree{}, fmt.Errorf("reading the log's state: %w", err)
	}
	var state struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return tree{}, fmt.Errorf("reading the log's state: %w", err)
	}
	if len(state.Root) != rfc6962.DefaultHasher.Size() {
		return tree{}, fmt.Errorf("reading the log's state: the root has %d bytes, want %d", len(state.Root), rfc6962.DefaultHasher.Size())
	}
	return tree{size: state.Size, root: state.Root}, nil
}

// ReadCheckpoint is the published checkpoint, with its cosignatures; os.ErrNotExist
// when there is none.
func (s store) ReadCheckpoint(context.Context) ([]byte, error) {
	raw, err := os.ReadFile(s.path(checkpointName))
	if err != nil {
		return nil, err
	}
	return s.witnessed(raw), nil
}

// witnessed is the checkpoint with the cosignatures that are kept beside it. Those
// that are damaged, or are of another checkpoint, are left out.
func (s store) witnessed(checkpoint []byte) []byte {
	cosigned, err := os.ReadFile(s.path(witnessedName))
	if err != nil || !bytes.HasPrefix(cosigned, checkpoint) {
		return checkpoint
	}
	var wellFormed *note.UnverifiedNoteError
	if _, err := note.Open(cosigned, nil); !errors.As(err, &wellFormed) {
		return checkpoint
	}
	return cosigned
}

// ReadTile is a hash tile; the full one where the partial one is gone.
func (s store) ReadTile(_ context.Context, level, index uint64, partial uint8) ([]byte, error) {
	return s.read(partial, func(p uint8) string { return layout.TilePath(level, index, p) })
}

// ReadEntryBundle is a data tile (c2sp.org/static-ct-api); the full one where the partial one is gone.
func (s store) ReadEntryBundle(_ context.Context, index uint64, partial uint8) ([]byte, error) {
	return s.read(partial, func(p uint8) string { return dataTilePath(index, p) })
}

func dataTilePath(index uint64, partial uint8) string {
	return tileDir + "/data/" + layout.NWithSuffix(0, index, partial)
}

func (s store) read(partial uint8, path func(uint8) string) ([]byte, error) {
	data, err := os.ReadFile(s.path(path(partial)))
	if partial > 0 && errors.Is(err, os.ErrNotExist) {
		return os.ReadFile(s.path(path(0)))
	}
	return data, err
}

// bundle reads and parses the entries [index*256, …) of a log of the size given.
func (s store) bundle(ctx context.Context, index, size uint64) ([]leaf, error) {
	partial := layout.PartialTileSize(0, index, size)
	want := int(partial)
	if want == 0 {
		want = layout.EntryBundleWidth
	}
	data, err := s.ReadEntryBundle(ctx, index, partial)
	if err != nil {
		return nil, fmt.Errorf("reading data tile %d: %w", index, err)
	}
	leaves, err := parseBundle(data, index*layout.EntryBundleWidth)
	if err != nil {
		return nil, fmt.Errorf("data tile %d: %w", index, err)
	}
	if len(leaves) < want {
		return nil, fmt.Errorf("data tile %d has %d entries, want %d", index, len(leaves), want)
	}
	return leaves[:want], nil
}

// root computes the root over the first size entries from the tiles.
func (s store) root(ctx context.Context, size uint64) ([]byte, error) {
	if size == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	nodes, err := client.FetchRangeNodes(ctx, size, s.ReadTile)
	if err != nil {
		return nil, fmt.Errorf("reading the tree of size %d: %w", size, err)
	}
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r, err := factory.NewRange(0, size, nodes)
	if err != nil {
		return nil, fmt.Errorf("computing the root of size %d: %w", size, err)
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return nil, fmt.Errorf("computing the root of size %d: %w", size, err)
	}
	return root, nil
}

// grewFrom verifies that the tree now has old as its beginning: the consistency
// proof of RFC 6962 §2.1.2, made from the tiles.
func (s store) grewFrom(ctx context.Context, old, now tree) error {
	switch {
	case old.size > now.size:
		return fmt.Errorf("the log has %d entries, but had %d before: an older copy", now.size, old.size)
	case old.size == 0:
		return nil
	case old.size == now.size:
		if !bytes.Equal(old.root, now.root) {
			return fmt.Errorf("the log of %d entries has another root than before: it was forked", now.size)
		}
		return nil
	}
	hashes, err := s.consistency(ctx, old.size, now.size, now.size)
	if err != nil {
		return err
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.size, now.size, hashes, old.root, now.root); err != nil {
		return fmt.Errorf("the log of %d entries does not continue that of %d: it was forked: %w", now.size, old.size, err)
	}
	return nil
}

// consistency is the proof between two sizes, read from the tiles of a log of the size given.
func (s store) consistency(ctx context.Context, first, second, size uint64) ([][]byte, error) {
	builder, err := client.NewProofBuilder(ctx, size, s.ReadTile)
	if err != nil {
		return nil, fmt.Errorf("preparing a proof: %w", err)
	}
	hashes, err := builder.ConsistencyProof(ctx, first, second)
	if err != nil {
		return nil, fmt.Errorf("making the consistency proof from %d to %d: %w", first, second, err)
	}
	return hashes, nil
}

// inclusion is the audit path of an entry in the first size entries (RFC 6962 §2.1.1).
func (s store) inclusion(ctx context.Context, index, size uint64) ([][]byte, error) {
	builder, err := client.NewProofBuilder(ctx, size, s.ReadTile)
	if err != nil {
		return nil, fmt.Errorf("preparing a proof: %w", err)
	}
	hashes, err := builder.InclusionProof(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("making the inclusion proof of %d: %w", index, err)
	}
	return hashes, nil
}

// rehash compares the entries of a data tile with the hashes over it in the
// tree: a bit that flips on disk would otherwise be copied on when the tile grows.
func (s store) rehash(ctx context.Context, index, size uint64) error {
	leaves, err := s.bundle(ctx, index, size)
	if err != nil {
		return err
	}
	hashes, err := s.ReadTile(ctx, 0, index, layout.PartialTileSize(0, index, size))
	if err != nil {
		return fmt.Errorf("reading hash tile %d: %w", index, err)
	}
	width := rfc6962.DefaultHasher.Size()
	if len(hashes) < len(leaves)*width {
		return fmt.Errorf("hash tile %d has %d bytes for %d entries", index, len(hashes), len(leaves))
	}
	above := issuers{dir: s.path(issuerDir)} // reads each file once
	for i, l := range leaves {
		if err := l.checkPrecertificate(func() (*x509.Certificate, error) { return above.signer(l) }); err != nil {
			return fmt.Errorf("entry %d is damaged: %w", index*layout.EntryBundleWidth+uint64(i), err)
		}
		if !bytes.Equal(l.hash(), hashes[i*width:(i+1)*width]) {
			return fmt.Errorf("entry %d is damaged: its hash is not the one in the tree", index*layout.EntryBundleWidth+uint64(i))
		}
	}
	return nil
}

// rehashEdge is rehash for the last data tile of the log.
func (s store) rehashEdge(ctx context.Context, size uint64) error {
	if size == 0 {
		return nil
	}
	return s.rehash(ctx, (size-1)/layout.EntryBundleWidth, size)
}
