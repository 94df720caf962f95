package embedded

import (
	"bytes"
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
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
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

// start verifies what is on disk and goes on from there.
func (l *Log) start(ctx context.Context) error {
	fresh, err := l.inspect()
	if err != nil {
		return err
	}
	if fresh {
		err = l.found(ctx)
	} else {
		err = l.verifyDisk(ctx)
	}
	if err == nil {
		err = l.sweep(ctx)
	}
	if err != nil {
		return err
	}
	return l.begin(ctx)
}

// found makes the files of a new log that are no entry's.
func (l *Log) found(ctx context.Context) error {
	err := l.dir.PutOwner(logdir.Owner{Origin: l.origin, LogID: l.description.ID[:], Key: l.description.SPKI, URL: l.description.URL})
	if err != nil {
		return err
	}
	mark, _, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	if errors.Is(err, os.ErrNotExist) {
		mark, err = l.newMark(ctx, logdir.EmptyTree())
	}
	if err != nil {
		return err
	}
	l.mark = mark // maybe of a first try: inspect has seen it
	if l.base, err = l.dir.Range(ctx, 0); err != nil {
		return err
	}
	l.backlog.tree = logdir.EmptyTree()
	return l.dir.PutTree(l.backlog.tree)
}

// begin makes the tree of what was sequenced, for which the mark goes up first, and
// starts over with an empty write-ahead file.
func (l *Log) begin(ctx context.Context) error {
	now := l.backlog.now()
	_, after, err := l.after(now.tree.Size + uint64(len(now.entries)))
	if err != nil {
		return err
	}
	if err := l.mark.Advance(highWith(now.entries, after)); err != nil {
		return err
	}
	l.backlog.marked, l.backlog.behind = after.Size, l.o.Now()
	if err := l.grow(ctx); err != nil {
		return err
	}
	if l.head, err = l.dir.Range(ctx, after.Size); err != nil {
		return err
	}
	file, err := wal.Open(l.dir, after.Size)
	if err != nil {
		return err
	}
	l.ahead = file
	if len(now.entries) > 0 {
		l.o.Logger.InfoContext(ctx, "entries of the write-ahead file became part of the tree",
			slog.String("log", l.description.URL), slog.Int("entries", len(now.entries)))
	}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	signal(l.toPublish)
	if l.published.Raw == nil { // readers find one from the beginning
		return l.publish(ctx)
	}
	return nil
}

// highWith is the mark of a tree with as many of the last entries, of those that lead to it,
// as a mark has. Until the tree is on disk nothing else may have them: what a crash left in
// the write-ahead file may never have got out of the disk's cache.
func highWith(entries []logdir.Entry, after checkpoint.Tree) logdir.High {
	var raws [][]byte
	for size := 0; len(entries) > 0; entries = entries[:len(entries)-1] {
		last := entries[len(entries)-1].Raw
		if size += len(last); size > logdir.MaxFlush {
			break
		}
		raws = append(raws, last)
	}
	slices.Reverse(raws)
	return logdir.High{Tree: after, First: after.Size - uint64(len(raws)), Entries: bytes.Join(raws, nil)}
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
	now, entries, err := l.survey(ctx, high, missing)
	if err == nil && missing {
		l.mark, err = l.newMark(ctx, now)
	}
	if err != nil {
		return err
	}
	l.backlog.tree, l.backlog.signed = now, l.published.Size
	l.backlog.add(entries, now.Size, l.o.Now())
	l.base, err = l.dir.Range(ctx, now.Size)
	return err
}

// survey gives the tree on the disk where it continues what the checkpoint has seen, and
// what the write-ahead file has beyond it, where that continues what the mark has seen.
// It only reads.
func (l *Log) survey(ctx context.Context, high logdir.High, missing bool) (now checkpoint.Tree, entries []logdir.Entry, err error) {
	var floors []checkpoint.Tree
	published, err := l.dir.OpenCheckpoint(ctx, l.verifier)
	switch {
	case errors.Is(err, os.ErrNotExist): // a crash while the log was made; it is published soon
	case err != nil:
		return now, nil, err
	default:
		l.published, floors = published, []checkpoint.Tree{published.Tree}
	}
	if now, err = l.verifyState(ctx, floors...); err != nil {
		return now, nil, err
	}
	entries, end, err := wal.Follow(ctx, l.dir, now, high)
	if err == nil && missing && end.End() > 0 && !l.o.AcceptMissingMark {
		err = fmt.Errorf("the high-water mark %s is missing: without it an older copy of the log can't be told from the newest; restore the file", l.config.MarkFile)
	}
	return now, entries, err
}

// newMark makes the mark file and opens it.
func (l *Log) newMark(ctx context.Context, t checkpoint.Tree) (*logdir.Mark, error) {
	if err := logdir.CreateMark(string(l.config.MarkFile), l.description.ID, t); err != nil {
		return nil, err
	}
	mark, _, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	return mark, err
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
	if err := l.verifyTiles(ctx, now); err != nil {
		return checkpoint.Tree{}, err
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

// verifyTiles refuses tiles that don't add up to a tree.
func (l *Log) verifyTiles(ctx context.Context, t checkpoint.Tree) error {
	root, err := l.dir.Root(ctx, t.Size)
	if err == nil && string(root) != string(t.Root) {
		err = fmt.Errorf("the tiles of the log's %d entries don't add up to its root: damaged or forked", t.Size)
	}
	return err
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

// sweep removes what a crash left unfinished, and what nobody needs any more.
func (l *Log) sweep(ctx context.Context) error {
	begin := time.Now()
	removed, err := l.dir.Sweep(l.published.Size)
	if removed > 0 {
		l.o.Logger.InfoContext(ctx, "removed files that a crash left unfinished or behind",
			slog.String("log", l.description.URL), slog.Int("files", removed), slog.Duration("took", time.Since(begin)))
	}
	return err
}

// Inspect says what [Open] would: whether the log with the key can be opened. It
// only reads, and may run beside a service: where another process has the log open,
// which inUse says, that one has compared its state with its mark.
func Inspect(ctx context.Context, c Config, key crypto.PublicKey) (about ctlog.Description, inUse bool, err error) {
	spki, err := marshalKey(key)
	if err != nil {
		return about, false, err
	}
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	if err != nil {
		return about, false, err
	}
	l := &Log{config: c, origin: c.Origin(), dir: logdir.Dir(c.Directory), verifier: verifier, description: describe(c, spki)}
	if _, err := os.Stat(string(l.dir)); err != nil {
		return about, false, fmt.Errorf("the directory can't be used; is its disk mounted?: %w", err)
	}
	if err := l.outside(); err != nil {
		return about, false, err
	}
	if _, err := l.inspect(); err != nil {
		return about, false, err
	}
	if err := l.checkOwner(); err != nil {
		return about, false, err
	}
	for _, path := range []string{string(l.dir), string(c.MarkFile)} {
		if err := unix.Access(path, unix.W_OK); err != nil && !errors.Is(err, unix.ENOENT) {
			return about, false, fmt.Errorf("%s can't be written by this user: %w; run it as the user of the service, or give the file to that one", path, err)
		}
	}
	high, err := logdir.ReadMark(string(c.MarkFile), l.description.ID)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return about, false, err
	}
	if inUse, err = l.dir.InUse(); err == nil && !inUse {
		_, _, err = l.survey(ctx, high, missing)
	}
	return l.description, inUse, err
}
