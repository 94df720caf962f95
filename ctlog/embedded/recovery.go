package embedded

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Errors of Open that callers tell apart.
var (
	// ErrLocked means that another process, or this one, has the log open.
	ErrLocked = logdir.ErrLocked
	// ErrFrozen means that the log takes nothing any more.
	ErrFrozen = errors.New("the log is frozen: it takes nothing any more; list it under ctlog.frozen")
)

// acquire makes the directory when it may, and locks it.
func (l *Log) acquire(ctx context.Context) error {
	if l.o.Create {
		if err := l.dir.Make(); err != nil {
			return err
		}
	}
	err := l.outside()
	if err == nil {
		l.lock, err = l.dir.Lock(ctx, l.o.lockWait)
	}
	return err
}

// outside refuses a mark inside the directory, symbolic links resolved: it
// would be rolled back together with the log.
func (l *Log) outside() error {
	dir, err := filepath.EvalSymlinks(string(l.dir))
	if err != nil {
		return fmt.Errorf("the directory can't be used; is its disk mounted?: %w", err)
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

// start verifies what is on disk, or makes a new log's files that are no entry's, and
// goes on from there. It refuses an existing log unless it has the same key and name, isn't
// smaller than the mark, continues what mark and checkpoint have seen, and has an
// undamaged right edge.
func (l *Log) start(ctx context.Context) error {
	fresh, err := l.inspect()
	switch {
	case err != nil:
	case fresh:
		err = l.dir.PutOwner(logdir.Owner{Origin: l.verifier.Name(), LogID: l.description.ID[:], Key: l.description.SPKI, URL: l.description.URL})
	default:
		err = l.checkOwner()
	}
	if err != nil {
		return err
	}
	high, err := l.takeMark(ctx) // of a new log maybe that of a first try: inspect has seen it
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	now, entries := logdir.EmptyTree(), []logdir.Entry(nil)
	if !fresh {
		if now, entries, err = l.survey(ctx, high, missing); err != nil {
			return err
		}
	}
	if missing {
		err := logdir.CreateMark(string(l.config.MarkFile), l.description.ID, now)
		if err == nil {
			_, err = l.takeMark(ctx)
		}
		if err != nil {
			return err
		}
	}
	l.backlog.update(func(p *progress) { p.tree = now }) // metrics read it already
	l.backlog.add(entries, now.Size, l.o.Now())
	if l.base, err = l.dir.Range(ctx, now.Size); err != nil {
		return err
	}
	if fresh {
		if err := l.dir.PutTree(now); err != nil {
			return err
		}
	}
	begin := time.Now() // of removing what a crash left unfinished, and what nobody needs any more
	removed, err := l.dir.Sweep(l.backlog.published.Size)
	if removed > 0 {
		l.o.Logger.InfoContext(ctx, "removed files that a crash left unfinished or behind",
			slog.Int("files", removed), slog.Duration("took", time.Since(begin)))
	}
	if err != nil {
		return err
	}
	return l.begin(ctx)
}

// takeMark opens the mark for as long as the log is open.
func (l *Log) takeMark(ctx context.Context) (logdir.High, error) {
	mark, high, err := logdir.TakeMark(ctx, string(l.config.MarkFile), l.description.ID, l.o.lockWait)
	if err == nil {
		l.mark = mark
	}
	return high, err
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
	l.backlog.update(func(p *progress) { p.marked, p.behind = after.Size, l.o.Now() })
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
		l.o.Logger.InfoContext(ctx, "entries of the write-ahead file became part of the tree", slog.Int("entries", len(now.entries)))
	}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	signal(l.toPublish)
	if l.backlog.published.Raw == nil { // readers find one from the beginning
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

// survey gives the tree on the disk where it continues what the checkpoint has seen, and
// what the write-ahead file has beyond it, where that continues what the mark has seen.
// It only reads.
func (l *Log) survey(ctx context.Context, high logdir.High, missing bool) (now checkpoint.Tree, entries []logdir.Entry, err error) {
	published, err := l.dir.OpenCheckpoint(l.verifier)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // else a crash while the log was made; it is published soon
		return now, nil, err
	}
	l.backlog.update(func(p *progress) { p.published = published })
	if now, err = l.verifyState(ctx, published.Tree); err != nil {
		return now, nil, err
	}
	entries, end, err := wal.Follow(ctx, l.dir, now, high)
	if err == nil && missing && end.End() > 0 {
		err = fmt.Errorf("the high-water mark %s is missing: without it an older copy of the log can't be told from the newest; restore the file", l.config.MarkFile)
	}
	return now, entries, err
}

// verifyState reads the state and verifies that the tiles add up to it, that its
// last entries are undamaged and that it continues the earlier tree.
func (l *Log) verifyState(ctx context.Context, earlier checkpoint.Tree) (checkpoint.Tree, error) {
	now, err := l.dir.Tree()
	if err == nil && earlier.Size <= now.Size { // else an older copy is told as such, not as a missing tile
		err = l.dir.VerifyRoot(ctx, now)
		if err == nil && now.Size > 0 {
			_, err = l.dir.Rehash(logdir.Bundles(now.Size)-1, now.Size)
		}
	}
	if err == nil {
		err = l.dir.GrewFrom(ctx, earlier, now)
	}
	return now, err
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
	if owner.Origin != l.verifier.Name() {
		return fmt.Errorf("the log was made as %q and can't become %q; a log keeps its name for life", owner.Origin, l.verifier.Name())
	}
	return nil
}

// Inspect says what [Open] would: whether the log with the key can be opened. It
// only reads, and may run beside a service: where another process has the log open,
// which inUse says, that one has compared its state with its mark.
func Inspect(ctx context.Context, c Config, key crypto.PublicKey) (about ctlog.Description, inUse bool, err error) {
	l, err := describe(c, key)
	if err != nil {
		return about, false, err
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
		if err := durable.Writable(path); err != nil {
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
