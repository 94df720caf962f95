package embedded

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

// about is the file that says whose log a directory holds. It is served, so
// that a reader of the log finds its key.
type about struct {
	Description string `json:"description"` // the origin
	LogID       []byte `json:"log_id"`
	Key         []byte `json:"key"` // DER SubjectPublicKeyInfo
	URL         string `json:"url"`
}

func marshalKey(key crypto.PublicKey) ([]byte, error) {
	if k, ok := key.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("the log's key is not ECDSA on P-256, which is what clients take")
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the log's key: %w", err)
	}
	return spki, nil
}

// acquire makes the directory when it may, and locks it.
func (l *Log) acquire(ctx context.Context) error {
	dir := string(l.config.Directory)
	if l.o.Create {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the log is public
			return fmt.Errorf("making the directory: %w", err)
		}
	} else if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("the directory can't be used; is its disk mounted?: %w", err)
	}
	if err := l.outside(); err != nil {
		return err
	}
	var err error
	l.lock, err = lockDir(ctx, dir, l.o.LockWait)
	return err
}

// outside refuses a mark inside the directory, symbolic links resolved: it
// would be rolled back together with the log.
func (l *Log) outside() error {
	dir, err := filepath.EvalSymlinks(string(l.config.Directory))
	if err != nil {
		return fmt.Errorf("resolving the directory: %w", err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(string(l.config.MarkFile)))
	if errors.Is(err, os.ErrNotExist) {
		parent, err = filepath.Dir(string(l.config.MarkFile)), nil
	}
	if err != nil {
		return fmt.Errorf("resolving the folder of the mark: %w", err)
	}
	rel, err := filepath.Rel(dir, parent)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return fmt.Errorf("the mark file %s is inside the log's directory, where it would be rolled back with it", l.config.MarkFile)
	}
	return nil
}

// start verifies what is on disk and starts Tessera on it.
func (l *Log) start(ctx context.Context) error {
	fresh, err := l.inspect()
	if err != nil {
		return err
	}
	if err := l.sweep(ctx); err != nil {
		return err
	}
	if !fresh {
		if err := l.verifyDisk(ctx); err != nil {
			return err
		}
	} else if err := l.writeAbout(); err != nil {
		return err
	}
	if err := l.startTessera(ctx); err != nil {
		return err
	}
	if fresh {
		if err := l.adoptMark(ctx, emptyTree()); err != nil {
			return errors.Join(err, l.abandon(ctx))
		}
		l.tree = emptyTree()
	}
	return nil
}

// abandon ends Tessera after a start that failed.
func (l *Log) abandon(ctx context.Context) error {
	defer l.end()
	return l.shutdown(ctx)
}

// inspect decides whether a new log may be made here, before anything is written.
func (l *Log) inspect() (fresh bool, err error) {
	if l.store.exists(frozenName) {
		return false, ErrFrozen
	}
	if l.store.exists(stateDir, treeStateName) {
		return false, nil
	}
	_, markErr := os.Lstat(string(l.config.MarkFile))
	switch {
	case !errors.Is(markErr, os.ErrNotExist):
		return false, fmt.Errorf("the log's state is gone, but its mark %s says that there was one; restore the directory", l.config.MarkFile)
	case l.store.exists(checkpointName), l.store.exists(tileDir):
		return false, errors.New("the log's state (.state/treeState) is gone, but its checkpoint or tiles are there; restore the whole directory")
	case !l.o.Create:
		return false, errors.New("there is no log in the directory; is its disk mounted? `mayfly init` makes a new one")
	}
	return true, nil
}

// verifyDisk is the guard of an existing log: same key and name, not smaller
// than the mark, the same history as mark and checkpoint, an undamaged right edge.
func (l *Log) verifyDisk(ctx context.Context) error {
	if err := l.checkAbout(); err != nil {
		return err
	}
	mark, high, err := takeMark(ctx, string(l.config.MarkFile), l.about.ID, l.o.LockWait)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	l.mark = mark
	floors := []tree{high}
	raw, err := l.store.ReadCheckpoint(ctx)
	switch {
	case errors.Is(err, os.ErrNotExist): // a crash while the log was made; it is published soon
	case err != nil:
		return fmt.Errorf("reading the checkpoint: %w", err)
	default:
		published, err := openCheckpoint(raw, l.verifier)
		if err != nil {
			return err
		}
		floors = append(floors, published.tree)
	}
	now, err := l.verifyState(ctx, floors...)
	if err != nil {
		return err
	}
	l.tree = now
	if !missing {
		return nil
	}
	if now.size > 0 && !l.o.AcceptMissingMark {
		return fmt.Errorf("the high-water mark %s is missing: without it an older copy of the log can't be told from the newest; restore the file", l.config.MarkFile)
	}
	return l.adoptMark(ctx, now)
}

// adoptMark makes the mark file and opens it.
func (l *Log) adoptMark(ctx context.Context, t tree) error {
	if err := createMark(string(l.config.MarkFile), l.about.ID, t); err != nil {
		return err
	}
	var err error
	l.mark, _, err = takeMark(ctx, string(l.config.MarkFile), l.about.ID, l.o.LockWait)
	return err
}

// verifyState reads the state and verifies that the tiles add up to it, that its
// last entries are undamaged and that it continues each of the earlier trees.
func (l *Log) verifyState(ctx context.Context, floors ...tree) (tree, error) {
	now, err := l.store.treeState()
	if err != nil {
		return tree{}, err
	}
	// The sizes first: an older copy is told as such, not as a missing tile.
	for _, floor := range floors {
		if floor.size > now.size {
			return tree{}, l.store.grewFrom(ctx, floor, now)
		}
	}
	root, err := l.store.root(ctx, now.size)
	if err != nil {
		return tree{}, err
	}
	if string(root) != string(now.root) {
		return tree{}, fmt.Errorf("the tiles of the log's %d entries don't add up to its root: damaged or forked", now.size)
	}
	if err := l.store.rehashEdge(ctx, now.size); err != nil {
		return tree{}, err
	}
	for _, floor := range floors {
		if err := l.store.grewFrom(ctx, floor, now); err != nil {
			return tree{}, err
		}
	}
	return now, nil
}

func (l *Log) writeAbout() error {
	raw, err := json.MarshalIndent(about{Description: l.origin, LogID: l.about.ID[:], Key: l.about.SPKI, URL: l.about.URL}, "", "  ")
	if err != nil {
		return fmt.Errorf("describing the log: %w", err)
	}
	return writeDurably(l.store.path(aboutName), append(raw, '\n'))
}

func (l *Log) checkAbout() error {
	a, err := l.store.about()
	if err != nil {
		return err
	}
	if string(a.Key) != string(l.about.SPKI) {
		return errors.New("the log was made with another key; a log keeps its key for life")
	}
	if a.Description != l.origin {
		return fmt.Errorf("the log was made as %q and can't become %q; a log keeps its name for life", a.Description, l.origin)
	}
	return nil
}

func (s store) about() (about, error) {
	raw, err := os.ReadFile(s.path(aboutName))
	if err != nil {
		return about{}, fmt.Errorf("reading whose log this is: %w", err)
	}
	var a about
	if err := json.Unmarshal(raw, &a); err != nil {
		return about{}, fmt.Errorf("reading whose log this is: %w", err)
	}
	return a, nil
}

// startTessera starts the storage. Its goroutines live until Close.
func (l *Log) startTessera(ctx context.Context) error {
	l.life, l.end = context.WithCancel(context.WithoutCancel(ctx))
	driver, err := posix.New(l.life, posix.Config{Path: l.store.dir})
	if err != nil {
		l.end()
		return fmt.Errorf("starting the storage: %w", err)
	}
	signer := &checkpointSigner{verifier: l.verifier, signer: l.o.Signer, now: l.o.Now, life: l.life, release: l.release}
	options := tessera.NewAppendOptions().WithCTLayout().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(l.config.CheckpointInterval).
		WithCheckpointRepublishInterval(max(tessera.DefaultCheckpointRepublishInterval, l.config.CheckpointInterval)).
		WithBatching(maxBatch, tesseraAge)
	appender, shutdown, _, err := tessera.NewAppender(l.life, driver, options)
	if err != nil {
		l.end()
		return fmt.Errorf("starting the storage: %w", err)
	}
	l.add, l.shutdown = tessera.NewCertificateTransparencyAppender(appender), shutdown
	return nil
}

// sweep removes what a crash left unfinished: files whose names are not those of
// a log. They were never part of the log, and never served.
func (l *Log) sweep(ctx context.Context) error {
	begin, removed := time.Now(), 0
	err := filepath.WalkDir(l.store.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(l.store.dir, path)
		if err != nil || entry.IsDir() || !unfinished(name) {
			return err
		}
		removed++
		return os.Remove(path) //nolint:gosec // G122: nobody else writes in the log's own folder
	})
	if err != nil {
		return fmt.Errorf("sweeping unfinished files: %w", err)
	}
	if removed > 0 {
		l.o.Logger.InfoContext(ctx, "removed files that a crash left unfinished",
			slog.String("log", l.about.URL), slog.Int("files", removed), slog.Duration("took", time.Since(begin)))
	}
	return nil
}

// unfinished reports whether a file is one that its writer would have renamed or
// removed: a known name with digits after it (Tessera's), or our own prefix.
func unfinished(name string) bool {
	dir, base := filepath.Split(name)
	if strings.HasPrefix(base, tempPrefix) {
		return true
	}
	for _, known := range []string{
		checkpointName, stateDir + "/" + treeStateName, stateDir + "/gcState", stateDir + "/version",
	} {
		if rest, ok := strings.CutPrefix(name, known); ok && rest != "" && digits(rest) {
			return true
		}
	}
	if !strings.HasPrefix(dir, tileDir+"/") || !digits(base) {
		return false
	}
	_, ok := parseTilePath(name)
	return !ok
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
