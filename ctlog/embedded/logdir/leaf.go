package logdir

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/crypto/cryptobyte"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// Entry types (RFC 6962 §3.1).
const (
	entryX509    = 0
	entryPrecert = 1
)

// Leaf is one entry as a data tile holds it (c2sp.org/static-ct-api, TileLeaf).
// Its slices point into the tile.
type Leaf struct {
	Timestamp      uint64 // milliseconds since 1970
	Precert        bool
	IssuerKeyHash  []byte // precert only
	Certificate    []byte // the certificate, or the TBSCertificate of a precertificate
	Extensions     []byte
	Precertificate []byte   // precert only
	Fingerprints   [][]byte // SHA-256 of each certificate above it
	Raw            []byte   // the whole entry
	committed      []byte   // its beginning, to which the tree commits
}

// ParseLeaves reads a data tile whose first entry has the index first. An entry
// whose leaf index is not its position is an error.
func ParseLeaves(data []byte, first uint64) ([]Leaf, error) {
	leaves, err := ParseEntries(data, first)
	if err == nil && len(leaves) > layout.EntryBundleWidth {
		return nil, errors.New("more than 256 entries")
	}
	return leaves, err
}

// ParseEntries is ParseLeaves for any number of entries.
func ParseEntries(data []byte, first uint64) ([]Leaf, error) {
	input := cryptobyte.String(data)
	leaves := make([]Leaf, 0, layout.EntryBundleWidth)
	for !input.Empty() {
		l, err := parseLeaf(&input)
		if err = l.checkPosition(first+uint64(len(leaves)), err); err != nil {
			return nil, err
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

// checkPosition is an error unless an entry was read, and has the leaf index.
func (l Leaf) checkPosition(want uint64, err error) error {
	if index, ok := (ctlog.SCT{Extensions: l.Extensions}).LeafIndex(); err == nil && (!ok || index != want) {
		err = errors.New("its leaf index is not its position")
	}
	if err != nil {
		return fmt.Errorf("entry %d: %w", want, err)
	}
	return nil
}

// errShort means that an entry isn't whole.
var errShort = errors.New("cut short")

func parseLeaf(input *cryptobyte.String) (Leaf, error) {
	var (
		l                                Leaf
		kind                             uint16
		certificate, extensions, precert cryptobyte.String
		fingerprints                     cryptobyte.String
		whole                            = *input
	)
	if !input.ReadUint64(&l.Timestamp) || !input.ReadUint16(&kind) {
		return Leaf{}, errShort
	}
	if kind != entryX509 && kind != entryPrecert {
		return Leaf{}, fmt.Errorf("unknown entry type %d", kind)
	}
	l.Precert = kind == entryPrecert
	if l.Precert && !input.ReadBytes(&l.IssuerKeyHash, 32) {
		return Leaf{}, errShort
	}
	if !input.ReadUint24LengthPrefixed(&certificate) || !input.ReadUint16LengthPrefixed(&extensions) {
		return Leaf{}, errShort
	}
	l.committed = whole[:len(whole)-len(*input)]
	if (l.Precert && !input.ReadUint24LengthPrefixed(&precert)) ||
		!input.ReadUint16LengthPrefixed(&fingerprints) || len(fingerprints)%32 != 0 {
		return Leaf{}, errShort
	}
	l.Certificate, l.Extensions, l.Precertificate = certificate, extensions, precert
	for ; len(fingerprints) > 0; fingerprints = fingerprints[32:] {
		l.Fingerprints = append(l.Fingerprints, fingerprints[:32])
	}
	l.Raw = whole[:len(whole)-len(*input)]
	return l, nil
}

// MerkleTreeLeaf is the structure that the tree commits to (RFC 6962 §3.4).
func (l Leaf) MerkleTreeLeaf() []byte {
	return append([]byte{0, 0}, l.committed...) // version v1, leaf type timestamped_entry
}

// Hash is the hash under which the tree holds the entry (RFC 6962 §2.1).
func (l Leaf) Hash() []byte { return rfc6962.DefaultHasher.HashLeaf(l.MerkleTreeLeaf()) }

// checkPrecertificate compares the logged TBSCertificate, which the tree commits
// to, with the precertificate, which it doesn't. The certificate that signed it is read
// only where the issuer itself didn't.
func (l Leaf) checkPrecertificate(issuers *Issuers) error {
	if !l.Precert {
		return nil
	}
	tbs, err := ctlog.PrecertificateTBS(l.Precertificate, nil)
	if err != nil || bytes.Equal(tbs, l.Certificate) {
		return err
	}
	if len(l.Fingerprints) == 0 {
		return errors.New("no issuer is recorded")
	}
	signer, err := issuers.Certificate([32]byte(l.Fingerprints[0]))
	if err != nil {
		return err
	}
	return l.CheckSignedBy(signer)
}

// CheckSignedBy is checkPrecertificate where the signer is known.
func (l Leaf) CheckSignedBy(signer *x509.Certificate) error {
	tbs, err := ctlog.PrecertificateTBS(l.Precertificate, signer)
	if err != nil {
		return err
	}
	if !bytes.Equal(tbs, l.Certificate) {
		return errors.New("the logged TBSCertificate is not the precertificate's")
	}
	return nil
}

// Logged is what was submitted.
func (l Leaf) Logged() []byte {
	if l.Precert {
		return l.Precertificate
	}
	return l.Certificate
}

// ExtraData is what get-entries gives beside the leaf (RFC 6962 §4.6): the chain,
// and before it the precertificate where there is one.
func (l Leaf) ExtraData(chain [][]byte) []byte {
	var b, list []byte
	for _, c := range chain {
		list = appendVector24(list, c)
	}
	if l.Precert {
		b = appendVector24(b, l.Precertificate)
	}
	return appendVector24(b, list)
}

// appendVector24 appends an opaque<0..2^24-1>. What is longer than that never
// gets into a log: the storage takes entries of 256 KiB at most.
func appendVector24(b, value []byte) []byte {
	n := len(value)
	return append(append(b, byte(n>>16), byte(n>>8), byte(n)), value...)
}

// maxLeaf bounds an entry: the storage takes 256 KiB, and the fingerprints of its
// issuers come on top. What is longer is damaged.
const maxLeaf = 512 << 10

// streamBuffer is what a LeafReader reads at once.
const streamBuffer = 32 << 10

// LeafReader reads the entries of a data tile one after the other, so that a reader
// holds one of them and not the tile.
type LeafReader struct {
	in    *bufio.Scanner
	leaf  Leaf   // the last one
	index uint64 // of the next one
}

// NewLeafReader reads a data tile whose first entry has the index first.
func NewLeafReader(tile io.Reader, first uint64) *LeafReader {
	r := &LeafReader{in: bufio.NewScanner(tile), index: first}
	r.in.Buffer(make([]byte, streamBuffer), maxLeaf)
	r.in.Split(func(data []byte, end bool) (int, []byte, error) {
		input := cryptobyte.String(data)
		if input.Empty() {
			return 0, nil, nil
		}
		l, err := parseLeaf(&input)
		if errors.Is(err, errShort) && !end {
			return 0, nil, nil
		}
		r.leaf = l
		return len(l.Raw), l.Raw, err
	})
	return r
}

// Next is the next entry, which holds until Next is called again. io.EOF when there is
// none. An entry whose leaf index is not its position is an error.
func (r *LeafReader) Next() (Leaf, error) {
	if !r.in.Scan() && r.in.Err() == nil {
		return Leaf{}, io.EOF
	}
	if err := r.leaf.checkPosition(r.index, r.in.Err()); err != nil {
		return Leaf{}, err
	}
	r.index++
	return r.leaf, nil
}

// OpenTile opens the file that holds the tile in a log of the size given, and tells how
// many of its bytes are the tile's. A partial tile is the beginning of the present one,
// so a reader with an older checkpoint gets its tile even after the file has gone.
func (d Dir) OpenTile(t TilePath, size uint64) (f *os.File, length int64, err error) {
	now := t
	now.Width = layout.PartialTileSize(uint64(max(t.Level, 0)), t.Index, size)
	f, err = os.Open(d.Path(now.Name()))
	if now.Width > 0 && errors.Is(err, fs.ErrNotExist) {
		now.Width = 0
		f, err = os.Open(d.Path(now.Name()))
	}
	if err != nil {
		return nil, 0, err
	}
	if length, err = tileLength(f, t, now); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, length, nil
}

// tileLength is how much of a file that holds the tile now is the tile t.
func tileLength(f *os.File, t, now TilePath) (int64, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case t.Width == now.Width:
		return info.Size(), nil
	case t.Level != DataLevel:
		want := int64(t.Width) * int64(rfc6962.DefaultHasher.Size())
		if info.Size() < want {
			return 0, fmt.Errorf("hash tile %d has %d bytes, want %d", t.Index, info.Size(), want)
		}
		return want, nil
	}
	length := int64(0)
	leaves := NewLeafReader(f, t.Index*layout.EntryBundleWidth)
	for range t.Width {
		l, err := leaves.Next()
		if err != nil {
			return 0, fmt.Errorf("data tile %d: %w", t.Index, err)
		}
		length += int64(len(l.Raw))
	}
	return length, nil
}

// Tile reads a tile as OpenTile finds it.
func (d Dir) Tile(t TilePath, size uint64) (_ []byte, err error) {
	f, length, err := d.OpenTile(t, size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.NewSectionReader(f, 0, length))
}
