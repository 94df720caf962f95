package embedded

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
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

// ReadEntry finds an entry by its index and proves that the log holds it. It
// only reads, so the log may be in use.
func ReadEntry(ctx context.Context, dir string, index uint64) (Entry, error) {
	s := store{dir: dir}
	h, err := s.publishedHead(ctx)
	if err != nil {
		return Entry{}, err
	}
	if index >= h.size {
		return Entry{}, fmt.Errorf("%w: it has %d entries", ErrNoEntry, h.size)
	}
	return s.prove(ctx, index, h)
}

// FindEntry is ReadEntry for the newest entry of a certificate with a serial
// number. It reads the log from its end, so it takes time in proportion to how long
// ago the certificate was logged.
func FindEntry(ctx context.Context, dir string, serial *big.Int) (Entry, error) {
	s := store{dir: dir}
	h, err := s.publishedHead(ctx)
	if err != nil {
		return Entry{}, err
	}
	for bundle := (h.size + layout.EntryBundleWidth - 1) / layout.EntryBundleWidth; bundle > 0; bundle-- {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		leaves, err := s.bundle(ctx, bundle-1, h.size)
		if err != nil {
			return Entry{}, err
		}
		for i := len(leaves) - 1; i >= 0; i-- {
			c, err := x509.ParseCertificate(leaves[i].logged())
			if err == nil && c.SerialNumber.Cmp(serial) == 0 {
				return s.prove(ctx, (bundle-1)*layout.EntryBundleWidth+uint64(i), h)
			}
		}
	}
	return Entry{}, fmt.Errorf("%w: none of its %d entries has this serial number", ErrNoEntry, h.size)
}

// logged is what was submitted.
func (l leaf) logged() []byte {
	if l.precert {
		return l.precertificate
	}
	return l.certificate
}

// publishedHead is the checkpoint, verified with the key that the directory states.
func (s store) publishedHead(ctx context.Context) (head, error) {
	a, err := s.about()
	if err != nil {
		return head{}, err
	}
	key, err := ctlog.ParseKey(a.Key)
	if err != nil {
		return head{}, err
	}
	verifier, err := newVerifier(a.Description, key)
	if err != nil {
		return head{}, err
	}
	raw, err := s.ReadCheckpoint(ctx)
	if err != nil {
		return head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return openCheckpoint(raw, verifier)
}

// prove reads the entry and verifies its proof.
func (s store) prove(ctx context.Context, index uint64, h head) (Entry, error) {
	leaves, err := s.bundle(ctx, index/layout.EntryBundleWidth, h.size)
	if err != nil {
		return Entry{}, err
	}
	l := leaves[index%layout.EntryBundleWidth]
	path, err := s.inclusion(ctx, index, h.size)
	if err != nil {
		return Entry{}, err
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, h.size, l.hash(), path, h.root); err != nil {
		return Entry{}, fmt.Errorf("the log is damaged: entry %d doesn't lead to the checkpoint's root: %w", index, err)
	}
	return Entry{
		Index: index, Timestamp: l.timestamp, Precert: l.precert, Certificate: l.logged(), LeafHash: [32]byte(l.hash()),
		Size: h.size, Path: path, Checkpoint: h.raw,
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
