package embedded

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

// Errors of Open that callers tell apart.
var (
	// ErrLocked means that another process, or this one, has the log open.
	ErrLocked = logdir.ErrLocked
	// ErrFrozen means that the log takes nothing any more.
	ErrFrozen = errors.New("the log is frozen: it takes nothing any more; list it under ctlog.frozen")
)

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
	if l.o.Create {
		if err := l.dir.Make(); err != nil {
			return err
		}
	} else if _, err := os.Stat(string(l.dir)); err != nil {
		return fmt.Errorf("the directory can't be used; is its disk mounted?: %w", err)
	}
	if err := l.outside(); err != nil {
		return err
	}
	var err error
	l.lock, err = l.dir.Lock(ctx, l.o.lockWait)
	return err
}

// outside refuses a mark inside the directory, symbolic links resolved: it
// would be rolled back together with the log.
func (l *Log) outside() error {
	dir, err := filepath.EvalSymlinks(string(l.dir))
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
	if fresh {
		err = l.begin(ctx)
	} else {
		err = l.verifyDisk(ctx)
	}
	if err != nil {
		return err
	}
	return l.startTessera(ctx) // it may sign at once: the mark covers what is there
}

// begin makes the files of a new log that are not the storage's.
func (l *Log) begin(ctx context.Context) error {
	err := l.dir.PutOwner(logdir.Owner{Origin: l.origin, LogID: l.description.ID[:], Key: l.description.SPKI, URL: l.description.URL})
	if err != nil {
		return err
	}
	mark, high, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return l.newMark(ctx, logdir.EmptyTree())
	case err != nil:
		return err
	}
	l.mark = mark // of a first try: inspect has seen it
	return l.hold(logdir.EmptyTree(), high)
}

// inspect decides whether a new log may be made here, before anything is written.
func (l *Log) inspect() (fresh bool, err error) {
	if l.dir.Exists(logdir.FrozenName) {
		return false, ErrFrozen
	}
	if l.dir.Exists(logdir.StateDir, logdir.TreeStateName) {
		return false, nil
	}
	mark, markErr := logdir.ReadMark(string(l.config.MarkFile), l.description.ID)
	tried := markErr == nil && mark.Size == 0 && l.o.Create // the making of the log was cut short: nothing was promised
	switch {
	case !tried && !errors.Is(markErr, os.ErrNotExist):
		return false, fmt.Errorf("the log's state is gone, but its mark %s says that there was one; restore the directory", l.config.MarkFile)
	case l.dir.Exists(logdir.CheckpointName), l.dir.Exists(logdir.TileDir):
		return false, errors.New("the log's state (.state/treeState) is gone, but its checkpoint or tiles are there; restore the whole directory")
	case !l.o.Create:
		return false, errors.New("there is no log in the directory; is its disk mounted? `mayfly init` makes a new one")
	}
	return true, nil
}

// verifyDisk refuses an existing log unless it has the same key and name, isn't
// smaller than the mark, continues what mark and checkpoint have seen, and has an
// undamaged right edge.
func (l *Log) verifyDisk(ctx context.Context) error {
	if err := l.checkOwner(); err != nil {
		return err
	}
	mark, high, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	if !missing {
		l.mark = mark
	}
	now, err := l.survey(ctx, high, missing)
	if err != nil {
		return err
	}
	if !missing {
		return l.hold(now, high)
	}
	return l.newMark(ctx, now)
}

// survey gives the tree on the disk where it continues what mark and checkpoint have
// seen. It only reads.
func (l *Log) survey(ctx context.Context, high checkpoint.Tree, missing bool) (checkpoint.Tree, error) {
	floors := []checkpoint.Tree{high}
	published, err := l.dir.OpenCheckpoint(ctx, l.verifier)
	switch {
	case errors.Is(err, os.ErrNotExist): // a crash while the log was made; it is published soon
	case err != nil:
		return checkpoint.Tree{}, err
	default:
		floors = append(floors, published.Tree)
	}
	now, err := l.verifyState(ctx, floors...)
	if err == nil && missing && now.Size > 0 && !l.o.AcceptMissingMark {
		err = fmt.Errorf("the high-water mark %s is missing: without it an older copy of the log can't be told from the newest; restore the file", l.config.MarkFile)
	}
	return now, err
}

// newMark makes the mark file and opens it.
func (l *Log) newMark(ctx context.Context, t checkpoint.Tree) error {
	if err := logdir.CreateMark(string(l.config.MarkFile), l.description.ID, t); err != nil {
		return err
	}
	mark, high, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	if err != nil {
		return err
	}
	l.mark = mark
	return l.hold(t, high)
}

// verifyState reads the state and verifies that the tiles add up to it, that its
// last entries are undamaged and that it continues each of the earlier trees.
func (l *Log) verifyState(ctx context.Context, floors ...checkpoint.Tree) (checkpoint.Tree, error) {
	now, err := l.dir.Tree()
	if err != nil {
		return checkpoint.Tree{}, err
	}
	// The sizes first: an older copy is told as such, not as a missing tile.
	for _, floor := range floors {
		if floor.Size > now.Size {
			return checkpoint.Tree{}, l.dir.GrewFrom(ctx, floor, now)
		}
	}
	root, err := l.dir.Root(ctx, now.Size)
	if err != nil {
		return checkpoint.Tree{}, err
	}
	if string(root) != string(now.Root) {
		return checkpoint.Tree{}, fmt.Errorf("the tiles of the log's %d entries don't add up to its root: damaged or forked", now.Size)
	}
	if now.Size > 0 {
		if err := l.dir.Rehash(ctx, logdir.Bundles(now.Size)-1, now.Size); err != nil {
			return checkpoint.Tree{}, err
		}
	}
	for _, floor := range floors {
		if err := l.dir.GrewFrom(ctx, floor, now); err != nil {
			return checkpoint.Tree{}, err
		}
	}
	return now, nil
}

// recover reads the state from the disk again after an error, and goes on only
// when it continues what was there before. An error may have come after the state
// was written, so the tree may have grown by entries without an SCT.
func (l *Log) recover(ctx context.Context) error {
	now, err := l.verifyState(ctx, l.tree)
	if err == nil {
		err = l.hold(now, checkpoint.Tree{}) // the mark may be what failed
	}
	if err != nil {
		l.unverified = fmt.Errorf("the log's state does not hold after an earlier error: %w", err)
		return l.unverified
	}
	l.o.Logger.InfoContext(ctx, "log state verified after a storage error",
		slog.String("log", l.description.URL), slog.Uint64("size", now.Size), slog.Any("after", l.unverified))
	l.unverified = nil
	return nil
}

// checkOwner refuses another key or name than those that the log was made with.
func (l *Log) checkOwner() error {
	owner, err := l.dir.Owner()
	if err != nil {
		return err
	}
	if string(owner.Key) != string(l.description.SPKI) {
		return errors.New("the log was made with another key; a log keeps its key for life")
	}
	if owner.Origin != l.origin {
		return fmt.Errorf("the log was made as %q and can't become %q; a log keeps its name for life", owner.Origin, l.origin)
	}
	return nil
}

// startTessera starts the storage. Its goroutines live until Close.
func (l *Log) startTessera(ctx context.Context) error {
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	driver, err := posix.New(l.ctx, posix.Config{Path: string(l.dir)})
	if err != nil {
		l.cancel()
		return fmt.Errorf("starting the storage: %w", err)
	}
	signer := &checkpointSigner{verifier: l.verifier, signer: l.o.Signer, now: l.o.Now, ctx: l.ctx, covered: l.covered, release: l.release}
	options := tessera.NewAppendOptions().WithCTLayout().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(l.config.CheckpointInterval).
		WithCheckpointRepublishInterval(max(tessera.DefaultCheckpointRepublishInterval, l.config.CheckpointInterval)).
		WithBatching(maxBatch, tesseraAge)
	appender, shutdown, _, err := tessera.NewAppender(l.ctx, driver, options)
	if err != nil {
		l.cancel()
		return fmt.Errorf("starting the storage: %w", err)
	}
	l.add, l.shutdown = tessera.NewCertificateTransparencyAppender(appender), shutdown
	return nil
}

// sweep removes what a crash left unfinished.
func (l *Log) sweep(ctx context.Context) error {
	begin := time.Now()
	removed, err := l.dir.Sweep()
	if removed > 0 {
		l.o.Logger.InfoContext(ctx, "removed files that a crash left unfinished",
			slog.String("log", l.description.URL), slog.Int("files", removed), slog.Duration("took", time.Since(begin)))
	}
	return err
}
