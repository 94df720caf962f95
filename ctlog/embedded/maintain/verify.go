// Package maintain checks the directory of an embedded log, copies it, makes a log of
// the copy again, and freezes it. Only [Restore] and [Freeze] change a log, and
// neither one that is open.
package maintain

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
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

	pace func(ctx context.Context) error // waits before each tile and data tile is read; nil: nothing waits
}

// Report is what a full check found in a log that is whole.
type Report struct {
	Origin          string
	LogID           [32]byte
	checkpoint.Tree        // that the published checkpoint covers
	Unpublished     uint64 // entries that are stored, but not published yet
	Precerts        uint64
	Certs           uint64
	Issuers         int    // certificates above the entries
	MarkSize        uint64 // when a mark was compared
	FirstEntry      uint64 // milliseconds; 0 when empty
	LastEntry       uint64
}

// Verify checks everything in the log of a directory that its published
// checkpoint covers: the checkpoint's signature, each entry (its form, leaf index
// = position, the precertificate's TBS and issuer key, its issuers present and
// whole), each tile and the root. It only reads, so the log may be in use meanwhile. An
// error says what is damaged.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	d := logdir.Dir(dir)
	owner, head, err := d.Head()
	if err != nil {
		return Report{}, err
	}
	if len(o.Key) > 0 && !bytes.Equal(o.Key, owner.Key) {
		return Report{}, errors.New("the log was made with another key than the one given")
	}
	report := Report{Origin: owner.Origin, LogID: sha256.Sum256(owner.Key), Tree: head.Tree}
	if err := verifyGrowth(ctx, d, head.Tree, o, &report); err != nil {
		return report, err
	}
	if o.pace == nil {
		o.pace = func(ctx context.Context) error { return ctx.Err() }
	}
	v := entryVerifier{dir: d, issuers: d.Issuers(), known: make(map[[32]byte]*x509.Certificate), report: &report, pace: o.pace}
	for index := range logdir.Bundles(head.Size) {
		if err := v.bundle(ctx, index, head.Size); err != nil {
			return report, err
		}
		if o.Progress != nil {
			o.Progress(min(head.Size, (index+1)*layout.EntryBundleWidth), head.Size)
		}
	}
	report.Issuers = len(v.known)
	return report, d.VerifyTiles(ctx, head.Tree, o.pace)
}

// How often a log that is being written is looked at, until its files fit each other.
const (
	looks     = 5
	lookAgain = 100 * time.Millisecond
)

// verifyGrowth checks that the stored tree continues the published one, and with what
// the write-ahead file has beyond it isn't behind the mark.
func verifyGrowth(ctx context.Context, d logdir.Dir, published checkpoint.Tree, o VerifyOptions, report *Report) (err error) {
	for range looks {
		if err = verifyOnce(ctx, d, published, o, report); err == nil || o.Backup || wait.For(ctx, lookAgain) != nil {
			return err
		}
	}
	return err
}

func verifyOnce(ctx context.Context, d logdir.Dir, published checkpoint.Tree, o VerifyOptions, report *Report) (err error) {
	var mark logdir.High
	if o.MarkFile != "" { // first: it only grows
		if mark, err = logdir.ReadMark(o.MarkFile, report.LogID); err != nil {
			return err
		}
		report.MarkSize = mark.Size
	}
	if o.Backup {
		return d.GrewFrom(ctx, mark.Tree, published)
	}
	now, err := d.Tree()
	if err != nil {
		return err
	}
	if err := d.GrewFrom(ctx, published, now); err != nil {
		return err
	}
	entries, _, err := wal.Follow(ctx, d, now, mark)
	report.Unpublished = now.Size + uint64(len(entries)) - published.Size
	return err
}

// entryVerifier checks entries one by one.
type entryVerifier struct {
	dir     logdir.Dir
	issuers *logdir.Issuers
	known   map[[32]byte]*x509.Certificate // by fingerprint
	report  *Report
	pace    func(ctx context.Context) error
}

func (v *entryVerifier) bundle(ctx context.Context, index, size uint64) error {
	if err := v.pace(ctx); err != nil {
		return fmt.Errorf("checking the log: %w", err)
	}
	leaves, err := v.dir.Rehash(index, size)
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

func (v *entryVerifier) entry(l logdir.Leaf) error {
	if v.report.Precerts+v.report.Certs == 0 {
		v.report.FirstEntry = l.Timestamp
	}
	v.report.LastEntry = l.Timestamp
	if len(l.Fingerprints) == 0 {
		return errors.New("no issuer is recorded")
	}
	above := make([]*x509.Certificate, len(l.Fingerprints))
	for i, f := range l.Fingerprints {
		var err error
		if above[i], err = v.issuer([32]byte(f)); err != nil {
			return err
		}
	}
	if !l.Precert {
		v.report.Certs++
		return nil
	}
	v.report.Precerts++
	issuer := above[0]
	if ctlog.SignsPrecertificates(issuer) { // RFC 6962 §3.2: the final certificate's issuer is the next
		if err := l.CheckSignedBy(issuer); err != nil {
			return err
		}
		if len(above) < 2 {
			return errors.New("a precertificate signing certificate is recorded without its issuer")
		}
		issuer = above[1]
	}
	if hash := sha256.Sum256(issuer.RawSubjectPublicKeyInfo); !bytes.Equal(l.IssuerKeyHash, hash[:]) {
		return errors.New("the issuer key hash is not that of the recorded issuer")
	}
	return nil
}

// issuer reads a certificate above an entry, each once.
func (v *entryVerifier) issuer(fingerprint [32]byte) (*x509.Certificate, error) {
	if c, ok := v.known[fingerprint]; ok {
		return c, nil
	}
	c, err := v.issuers.Certificate(fingerprint)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the issuer %x is missing", fingerprint)
	}
	if err == nil {
		v.known[fingerprint] = c
	}
	return c, err
}

// How the log is checked in the background.
const (
	scrubFirst = 10 * time.Minute // after the start, so that a service that restarts daily is checked too
	scrubAgain = time.Minute      // after a finding, which only a second look makes one
	scrubAlarm = time.Hour        // while there is one
	scrubTiles = 20               // tiles a second: some 10 MB/s
)

// Scrub checks the whole log again and again, and remembers what it found.
type Scrub struct {
	Dir      string
	Key      []byte // the log's, DER SubjectPublicKeyInfo
	MarkFile string
	Interval time.Duration // zero: the log is never checked
	Now      func() time.Time
	Logger   *slog.Logger

	mu      sync.Mutex // guards what follows
	damaged bool       // what the last two checks found
	at      time.Time
	took    time.Duration
	whole   bool // what the last one found
}

// Run checks the whole log as `mayfly log verify` does, every day or as configured,
// slowly and one check at a time, until ctx ends. What two checks in a row find is
// damage until a later one finds the log whole.
func (s *Scrub) Run(ctx context.Context) {
	every := s.Interval
	if every <= 0 {
		return
	}
	for found, next := 0, min(scrubFirst, every); wait.For(ctx, next) == nil; {
		begin := time.Now()
		report, err := Verify(ctx, s.Dir, VerifyOptions{
			Key: s.Key, MarkFile: s.MarkFile, pace: rate.NewLimiter(scrubTiles, 1).Wait,
		})
		if ctx.Err() != nil {
			return // a check that was cut off has found nothing
		}
		switch {
		case err == nil:
			found, next = 0, every
		case found == 0:
			found, next = 1, min(scrubAgain, every)
		default:
			found, next = found+1, min(scrubAlarm, every)
		}
		s.found(ctx, report, err, found, time.Since(begin))
	}
}

// found keeps what a check found, and says so.
func (s *Scrub) found(ctx context.Context, report Report, err error, times int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.took, s.whole = s.Now(), took, err == nil
	attrs := []slog.Attr{slog.Uint64("entries", report.Size), slog.Duration("took", took)}
	switch {
	case err == nil:
		s.damaged = false
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "the whole log was checked: it is as it should be", attrs...)
	case times == 1:
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "a check of the whole log failed; it is checked once more", append(attrs, slog.Any("error", err))...)
	default:
		s.damaged = true
		s.Logger.LogAttrs(ctx, slog.LevelError, "the log is damaged", append(attrs, slog.Any("error", err))...)
	}
}

// Damaged reports whether the log is known to be damaged.
func (s *Scrub) Damaged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damaged
}

// Collectors show the last check of the whole log; NaN before the first.
func (s *Scrub) Collectors() []prometheus.Collector {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return metric.Read(name, help, nil, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.at.IsZero() {
				return math.NaN()
			}
			return read()
		})
	}
	return []prometheus.Collector{
		gauge("mayfly_ctlog_verify_success", "1 when the last check of the whole log found it as it should be, else 0.", func() float64 { return metric.Bool(s.whole) }),
		gauge("mayfly_ctlog_verify_timestamp_seconds", "When the last check of the whole log ended, in seconds since 1970.", func() float64 { return float64(s.at.Unix()) }),
		gauge("mayfly_ctlog_verify_seconds", "How long the last check of the whole log took.", func() float64 { return s.took.Seconds() }),
	}
}
