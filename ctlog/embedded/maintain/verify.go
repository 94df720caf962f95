package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

// VerifyOptions are what a full check may be told.
type VerifyOptions struct {
	// Key is the log's key, DER SubjectPublicKeyInfo; empty: the one that the
	// directory states, which shows that the log is whole, but not whose it is.
	Key []byte
	// MarkFile is the high-water mark to compare with; empty: not compared.
	MarkFile string
	// Backup says that the directory was written by Backup: it has no state.
	Backup bool
	// Progress is called with entries done and all entries, from one goroutine; may be nil.
	Progress func(done, total uint64)
	// Workers read tiles at the same time; zero: 2.
	Workers uint
	// Pace is called before each tile and data tile is read, and may wait. Its error
	// ends the check. Nil: nothing waits.
	Pace func(ctx context.Context) error
}

// Report is what a full check found in a log that is whole.
type Report struct {
	Origin      string
	LogID       [32]byte
	Size        uint64 // entries that the published checkpoint covers
	Root        []byte
	Unpublished uint64 // entries that are stored, but not published yet
	Precerts    uint64
	Certs       uint64
	Issuers     int    // certificates above the entries
	MarkSize    uint64 // when a mark was compared
	FirstEntry  uint64 // milliseconds; 0 when empty
	LastEntry   uint64
}

// Verify checks everything in the log of a directory that its published
// checkpoint covers: the checkpoint's signature, each entry (its form, leaf index
// = position, the precertificate's TBS and issuer key, its issuers present and
// whole), and with Tessera's own checker each tile and the root. It only reads,
// so the log may be in use meanwhile. An error says what is damaged.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	s := store{dir: dir}
	a, err := s.about()
	if err != nil {
		return Report{}, err
	}
	if len(o.Key) > 0 && !bytes.Equal(o.Key, a.Key) {
		return Report{}, errors.New("the log was made with another key than the one given")
	}
	key, err := ctlog.ParseKey(a.Key)
	if err != nil {
		return Report{}, err
	}
	verifier, err := newVerifier(a.Description, key)
	if err != nil {
		return Report{}, err
	}
	raw, err := s.ReadCheckpoint(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	h, err := openCheckpoint(raw, verifier)
	if err != nil {
		return Report{}, err
	}
	report := Report{Origin: a.Description, LogID: sha256.Sum256(a.Key), Size: h.size, Root: h.root}
	if err := s.verifyGrowth(ctx, h.tree, o, &report); err != nil {
		return report, err
	}
	v := entryVerifier{store: s, issuers: &issuers{dir: s.path(issuerDir)}, known: make(map[[32]byte]*x509.Certificate), report: &report, pace: o.Pace}
	if v.pace == nil {
		v.pace = func(context.Context) error { return nil }
	}
	for index := uint64(0); index*layout.EntryBundleWidth < h.size; index++ {
		if err := v.bundle(ctx, index, h.size); err != nil {
			return report, err
		}
		if o.Progress != nil {
			o.Progress(min(h.size, (index+1)*layout.EntryBundleWidth), h.size)
		}
	}
	report.Issuers = len(v.known)
	workers := o.Workers
	if workers == 0 {
		workers = 2
	}
	return report, s.fsck(ctx, frozen{store: s, checkpoint: raw, pace: v.pace}, a.Description, verifier, workers)
}

// verifyGrowth checks that the stored tree continues the published one, and is
// not behind the mark.
func (s store) verifyGrowth(ctx context.Context, published tree, o VerifyOptions, report *Report) error {
	var mark tree
	if o.MarkFile != "" {
		high, err := readMark(o.MarkFile, report.LogID)
		if err != nil {
			return err
		}
		mark, report.MarkSize = high, high.size
	}
	now := published
	if !o.Backup {
		var err error
		if now, err = s.treeState(); err != nil {
			return err
		}
	}
	for _, earlier := range []tree{published, mark} {
		if err := s.grewFrom(ctx, earlier, now); err != nil {
			return err
		}
	}
	report.Unpublished = now.size - published.size
	return nil
}

// fsck runs Tessera's checker over the checkpoint that was read. It comes last:
// what it finds damaged is told better by the checks before it.
func (s store) fsck(ctx context.Context, from frozen, origin string, v note.Verifier, workers uint) error {
	if err := fsck.New(origin, v, from, bundleHashes, fsck.Opts{N: workers}).Check(ctx); err != nil {
		return fmt.Errorf("tessera's check of tiles and root: %w", err)
	}
	return nil
}

// frozen is a store whose checkpoint stays the one that the check began with.
type frozen struct {
	store
	checkpoint []byte
	pace       func(ctx context.Context) error
}

func (f frozen) ReadCheckpoint(context.Context) ([]byte, error) { return f.checkpoint, nil }

func (f frozen) ReadTile(ctx context.Context, level, index uint64, partial uint8) ([]byte, error) {
	if err := f.pace(ctx); err != nil {
		return nil, err
	}
	return f.store.ReadTile(ctx, level, index, partial)
}

func (f frozen) ReadEntryBundle(ctx context.Context, index uint64, partial uint8) ([]byte, error) {
	if err := f.pace(ctx); err != nil {
		return nil, err
	}
	return f.store.ReadEntryBundle(ctx, index, partial)
}

// entryVerifier checks entries one by one.
type entryVerifier struct {
	store   store
	issuers *issuers
	known   map[[32]byte]*x509.Certificate // by fingerprint
	report  *Report
	pace    func(ctx context.Context) error
}

func (v *entryVerifier) bundle(ctx context.Context, index, size uint64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("checking the log: %w", err)
	}
	if err := v.pace(ctx); err != nil {
		return fmt.Errorf("checking the log: %w", err)
	}
	if err := v.store.rehash(ctx, index, size); err != nil {
		return err
	}
	leaves, err := v.store.bundle(ctx, index, size)
	if err != nil {
		return err
	}
	for i, l := range leaves {
		if err := v.entry(l); err != nil {
			return fmt.Errorf("entry %d: %w", index*layout.EntryBundleWidth+uint64(i), err)
		}
	}
	return nil
}

func (v *entryVerifier) entry(l leaf) error {
	if v.report.Precerts+v.report.Certs == 0 {
		v.report.FirstEntry = l.timestamp
	}
	v.report.LastEntry = l.timestamp
	if len(l.fingerprints) == 0 {
		return errors.New("no issuer is recorded")
	}
	above := make([]*x509.Certificate, len(l.fingerprints))
	for i, f := range l.fingerprints {
		var err error
		if above[i], err = v.issuer([32]byte(f)); err != nil {
			return err
		}
	}
	if !l.precert {
		v.report.Certs++
		return nil
	}
	v.report.Precerts++
	issuer := above[0]
	if ctlog.SignsPrecertificates(issuer) { // RFC 6962 §3.2: the final certificate's issuer is the next
		if err := l.checkSignedBy(issuer); err != nil {
			return err
		}
		if len(above) < 2 {
			return errors.New("a precertificate signing certificate is recorded without its issuer")
		}
		issuer = above[1]
	}
	if hash := sha256.Sum256(issuer.RawSubjectPublicKeyInfo); !bytes.Equal(l.issuerKeyHash, hash[:]) {
		return errors.New("the issuer key hash is not that of the recorded issuer")
	}
	return nil
}

// issuer reads a certificate above an entry, each once.
func (v *entryVerifier) issuer(fingerprint [32]byte) (*x509.Certificate, error) {
	if c, ok := v.known[fingerprint]; ok {
		return c, nil
	}
	der, err := v.issuers.get(fingerprint)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the issuer %x is missing", fingerprint)
	}
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the issuer %x: %w", fingerprint, err)
	}
	v.known[fingerprint] = c
	return c, nil
}
