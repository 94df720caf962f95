package read

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

// Entry is one entry of a log, with the proof that it is there.
type Entry struct {
	Index       uint64
	Timestamp   uint64 // milliseconds since 1970
	Precert     bool
	Certificate []byte // DER: the precertificate or the certificate that was logged
	LeafHash    [32]byte

	Size       uint64   // of the checkpoint
	Path       [][]byte // from the leaf to the checkpoint's root (RFC 6962 §2.1.1)
	Checkpoint []byte
}

// ErrNoEntry means that the published log has no such entry.
var ErrNoEntry = errors.New("no such entry in the published log")

// EntryAt finds an entry by its index and proves that the log holds it. It
// only reads, so the log may be in use.
func EntryAt(ctx context.Context, dir string, index uint64) (Entry, error) {
	d := logdir.Dir(dir)
	_, h, err := d.Head()
	if err != nil {
		return Entry{}, err
	}
	if index >= h.Size {
		return Entry{}, fmt.Errorf("%w: it has %d entries", ErrNoEntry, h.Size)
	}
	return prove(ctx, d, index, h)
}

// FindEntry is EntryAt for the newest entry of a certificate with a serial
// number. It reads the log from its end, so it takes time in proportion to how long
// ago the certificate was logged.
func FindEntry(ctx context.Context, dir string, serial *big.Int) (Entry, error) {
	d := logdir.Dir(dir)
	_, h, err := d.Head()
	if err != nil {
		return Entry{}, err
	}
	for bundle := logdir.Bundles(h.Size); bundle > 0; bundle-- {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		leaves, err := d.Bundle(bundle-1, h.Size)
		if err != nil {
			return Entry{}, err
		}
		for i := len(leaves) - 1; i >= 0; i-- {
			c, err := x509.ParseCertificate(leaves[i].Logged())
			if err == nil && c.SerialNumber.Cmp(serial) == 0 {
				return prove(ctx, d, (bundle-1)*layout.EntryBundleWidth+uint64(i), h)
			}
		}
	}
	return Entry{}, fmt.Errorf("%w: none of its %d entries has this serial number", ErrNoEntry, h.Size)
}

// prove reads the entry and verifies its proof.
func prove(ctx context.Context, d logdir.Dir, index uint64, h checkpoint.Head) (Entry, error) {
	leaves, err := d.Bundle(index/layout.EntryBundleWidth, h.Size)
	if err != nil {
		return Entry{}, err
	}
	l := leaves[index%layout.EntryBundleWidth]
	path, err := d.Inclusion(ctx, index, h.Size, h.Size)
	if err != nil {
		return Entry{}, err
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, h.Size, l.Hash(), path, h.Root); err != nil {
		return Entry{}, fmt.Errorf("the log is damaged: entry %d doesn't lead to the checkpoint's root: %w", index, err)
	}
	return Entry{
		Index: index, Timestamp: l.Timestamp, Precert: l.Precert, Certificate: l.Logged(), LeafHash: [32]byte(l.Hash()),
		Size: h.Size, Path: path, Checkpoint: h.Raw,
	}, nil
}

// Proof is the entry's proof as c2sp.org/tlog-proof writes it: index, audit path
// and checkpoint, which anybody with the log's key can verify offline.
func (e Entry) Proof() []byte {
	var b strings.Builder
	b.WriteString("c2sp.org/tlog-proof@v1\nindex " + strconv.FormatUint(e.Index, 10) + "\n")
	for _, hash := range e.Path {
		b.WriteString(base64.StdEncoding.EncodeToString(hash) + "\n")
	}
	b.WriteString("\n")
	b.Write(e.Checkpoint)
	return []byte(b.String())
}
