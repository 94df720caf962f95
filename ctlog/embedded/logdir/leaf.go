package embedded

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"
)

// Entry types (RFC 6962 §3.1).
const (
	entryX509    = 0
	entryPrecert = 1
)

// leaf is one entry as a data tile holds it (c2sp.org/static-ct-api, TileLeaf).
// Its slices point into the tile.
type leaf struct {
	timestamp      uint64
	precert        bool
	issuerKeyHash  []byte // precert only
	certificate    []byte // the certificate, or the TBSCertificate of a precertificate
	extensions     []byte
	precertificate []byte // precert only
	fingerprints   [][]byte
	raw            []byte // the whole entry
}

// parseBundle reads a data tile whose first entry has the index first. An entry
// whose leaf index is not its position is an error.
func parseBundle(data []byte, first uint64) ([]leaf, error) {
	input := cryptobyte.String(data)
	leaves := make([]leaf, 0, layout.EntryBundleWidth)
	for !input.Empty() {
		position := first + uint64(len(leaves))
		if len(leaves) == layout.EntryBundleWidth {
			return nil, errors.New("more than 256 entries")
		}
		l, err := parseLeaf(&input)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", position, err)
		}
		if index, ok := (ctlog.SCT{Extensions: l.extensions}).LeafIndex(); !ok || index != position {
			return nil, fmt.Errorf("entry %d: its leaf index is not its position", position)
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

func parseLeaf(input *cryptobyte.String) (leaf, error) {
	var (
		l                                leaf
		kind                             uint16
		certificate, extensions, precert cryptobyte.String
		fingerprints                     cryptobyte.String
		whole                            = *input
	)
	if !input.ReadUint64(&l.timestamp) || !input.ReadUint16(&kind) {
		return leaf{}, errors.New("cut short")
	}
	if kind != entryX509 && kind != entryPrecert {
		return leaf{}, fmt.Errorf("unknown entry type %d", kind)
	}
	l.precert = kind == entryPrecert
	if l.precert && !input.ReadBytes(&l.issuerKeyHash, 32) {
		return leaf{}, errors.New("cut short")
	}
	if !input.ReadUint24LengthPrefixed(&certificate) || !input.ReadUint16LengthPrefixed(&extensions) ||
		(l.precert && !input.ReadUint24LengthPrefixed(&precert)) ||
		!input.ReadUint16LengthPrefixed(&fingerprints) || len(fingerprints)%32 != 0 {
		return leaf{}, errors.New("cut short")
	}
	l.certificate, l.extensions, l.precertificate = certificate, extensions, precert
	for ; len(fingerprints) > 0; fingerprints = fingerprints[32:] {
		l.fingerprints = append(l.fingerprints, fingerprints[:32])
	}
	l.raw = whole[:len(whole)-len(*input)]
	return l, nil
}

// merkleTreeLeaf is the structure that the tree commits to (RFC 6962 §3.4).
func (l leaf) merkleTreeLeaf() []byte {
	b := make([]byte, 0, 64+len(l.certificate)+len(l.extensions))
	b = append(b, 0, 0) // version v1, leaf type timestamped_entry
	b = append(b, l.raw[:8+2]...)
	b = append(b, l.issuerKeyHash...)
	b = appendVector24(b, l.certificate)
	b = append(b, byte(len(l.extensions)>>8), byte(len(l.extensions)))
	return append(b, l.extensions...)
}

// signedBytes is what the SCT of an entry signs (RFC 6962 §3.2). It is the leaf's
// bytes (RFC 6962 §3.4) too: both start with version v1 and a zero.
func signedBytes(e *ctonly.Entry, extensions []byte) []byte {
	head := make([]byte, 0, 8+2)
	head = binary.BigEndian.AppendUint64(head, e.Timestamp)
	kind := uint16(entryX509)
	if e.IsPrecert {
		kind = entryPrecert
	}
	head = binary.BigEndian.AppendUint16(head, kind)
	return leaf{raw: head, issuerKeyHash: e.IssuerKeyHash, certificate: e.Certificate, extensions: extensions}.merkleTreeLeaf()
}

func (l leaf) hash() []byte { return rfc6962.DefaultHasher.HashLeaf(l.merkleTreeLeaf()) }

// checkPrecertificate compares the logged TBSCertificate, which the tree commits
// to, with the precertificate, which it doesn't. signer gives the certificate that
// signed it, and is asked only where the issuer itself didn't.
func (l leaf) checkPrecertificate(signer func() (*x509.Certificate, error)) error {
	if !l.precert {
		return nil
	}
	tbs, err := ctlog.PrecertificateTBS(l.precertificate, nil)
	if err != nil {
		return err
	}
	if bytes.Equal(tbs, l.certificate) {
		return nil
	}
	c, err := signer()
	if err != nil {
		return err
	}
	return l.checkSignedBy(c)
}

// checkSignedBy is checkPrecertificate where the signer is known.
func (l leaf) checkSignedBy(signer *x509.Certificate) error {
	tbs, err := ctlog.PrecertificateTBS(l.precertificate, signer)
	if err != nil {
		return err
	}
	if !bytes.Equal(tbs, l.certificate) {
		return errors.New("the logged TBSCertificate is not the precertificate's")
	}
	return nil
}

// extraData is what get-entries gives beside the leaf (RFC 6962 §4.6): the chain,
// and before it the precertificate where there is one.
func (l leaf) extraData(chain [][]byte) []byte {
	var b []byte
	if l.precert {
		b = appendVector24(b, l.precertificate)
	}
	var list []byte
	for _, c := range chain {
		list = appendVector24(list, c)
	}
	return appendVector24(b, list)
}

// bundleHashes are the leaf hashes of a data tile, as Tessera's checker wants them.
func bundleHashes(data []byte) ([][]byte, error) {
	input := cryptobyte.String(data)
	var hashes [][]byte
	for !input.Empty() {
		l, err := parseLeaf(&input)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, l.hash())
	}
	return hashes, nil
}

// appendVector24 appends an opaque<0..2^24-1>. What is longer than that never
// gets into a log: the storage takes entries of 256 KiB at most.
func appendVector24(b, value []byte) []byte {
	n := len(value)
	return append(append(b, byte(n>>16), byte(n>>8), byte(n)), value...)
}
