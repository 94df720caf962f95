package embedded

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// Bounds of the entries that are sequenced and not in the tree yet. Beyond them the
// sequencer waits.
const (
	maxBacklog      = 2048
	maxBacklogBytes = 2 << 20
	// So many of them don't wait for the interval to pass.
	fullBacklog      = maxBacklog / 2
	fullBacklogBytes = maxBacklogBytes / 2
)

// frame is the entries of one flush.
type frame struct {
	wal.Frame
	entries []logdir.Entry
	after   checkpoint.Tree
	// written and marked are set once the file, or the mark, has it.
	written, marked bool
}

// backlog is the entries that are sequenced and not in the tree yet.
type backlog struct {
	added chan struct{} // holds one: something was added
	grown chan struct{} // holds one: the tree has grown, or can't

	mu sync.Mutex // guards what follows
	progress
}

// progress is how far the log has come.
type progress struct {
	tree      checkpoint.Tree // what is on disk
	entries   []logdir.Entry  // that follow it
	bytes     int             // of these
	marked    uint64          // entries that the durable mark covers
	published checkpoint.Head // by this process or the last one, with its cosignatures
	behind    time.Time       // since when entries wait for a checkpoint, where some do
	failed    error           // why the tree on disk must be read again
}

// full says that nothing more may be sequenced now.
func (p progress) full() bool { return len(p.entries) >= maxBacklog || p.bytes >= maxBacklogBytes }

// signal puts a value into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add takes entries that are durable; the mark covers so many.
func (b *backlog) add(entries []logdir.Entry, marked uint64, now time.Time) {
	b.update(func(p *progress) {
		if p.published.Size >= p.marked {
			p.behind = now
		}
		p.marked = marked
		p.entries = append(p.entries, entries...)
		for _, e := range entries {
			p.bytes += len(e.Raw)
		}
	})
	signal(b.added)
}

// now is how far the log has come.
func (b *backlog) now() (p progress) {
	b.update(func(now *progress) { p = *now })
	p.entries = slices.Clip(p.entries)
	return p
}

func (b *backlog) update(change func(*progress)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.progress)
}

// drop forgets the entries that the tree holds now.
func (b *backlog) drop(now checkpoint.Tree) {
	b.update(func(p *progress) {
		n := now.Size - p.tree.Size
		for _, e := range p.entries[:n] {
			p.bytes -= len(e.Raw)
		}
		p.entries, p.tree = slices.Clone(p.entries[n:]), now
	})
}

// integrate makes what was sequenced part of the tree, at most once in an interval
// unless there is much of it, until ctx ends. After an error it tries again.
func (l *Log) integrate(ctx context.Context) {
	for last := (time.Time{}); l.awaitBacklog(ctx, last.Add(l.config.CheckpointInterval)) == nil; last = time.Now() {
		l.growing.Lock()
		err := l.grow(ctx)
		l.growing.Unlock()
		if err != nil && ctx.Err() == nil {
			l.metrics.ungrown.Inc()
			l.o.Logger.ErrorContext(ctx, "log entries can't become part of the tree; they are stored, and it is tried again", slog.Any("error", err))
			if wait.For(ctx, l.config.CheckpointInterval) != nil {
				return
			}
		}
	}
}

// awaitBacklog waits until there are entries to integrate, and their time has come or
// they are many.
func (l *Log) awaitBacklog(ctx context.Context, due time.Time) error {
	for ctx.Err() == nil { // however much there is: Close does the rest
		now, left := l.backlog.now(), time.Until(due)
		switch waiting := len(now.entries); {
		case waiting >= fullBacklog || now.bytes >= fullBacklogBytes || waiting > 0 && left <= 0:
			return nil
		case waiting == 0:
			left = time.Hour // or until something is added
		}
		if err := wait.OrWoken(ctx, left, l.backlog.added); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// grow makes what was sequenced part of the tree, after an error once the disk has been
// read and holds what it should. Whoever calls it has growing.
func (l *Log) grow(ctx context.Context) (err error) {
	failed := l.backlog.now().failed
	if failed != nil {
		if err := l.reread(ctx); err != nil {
			return fmt.Errorf("the log's state does not hold after an earlier error: %w", err)
		}
	}
	defer func() {
		l.backlog.update(func(p *progress) { p.failed = err })
		signal(l.backlog.grown)
	}()
	if now := l.backlog.now(); len(now.entries) > 0 {
		if err := l.extend(ctx, now.tree, now.entries); err != nil {
			return err
		}
	}
	if failed != nil {
		l.o.Logger.InfoContext(ctx, "log state verified after a storage error", slog.Any("after", failed))
	}
	return nil
}

// extend writes the entries behind a tree, verifies what it wrote, and goes on from there.
func (l *Log) extend(ctx context.Context, before checkpoint.Tree, entries []logdir.Entry) error {
	if err := l.lock.Held(); err != nil {
		return err
	}
	now, err := l.dir.Tree()
	if err != nil {
		return err
	}
	if now.Size != before.Size || !bytes.Equal(now.Root, before.Root) {
		return fmt.Errorf("the log has %d entries in its tree, want %d: somebody else writes to it", now.Size, before.Size)
	}
	grown, after, err := l.after(before.Size + uint64(len(entries)))
	if err != nil {
		return err
	}
	if err := l.dir.Grow(ctx, before.Size, entries); err != nil {
		return err
	}
	l.o.reached("tiles written")
	if err := l.dir.VerifyRoot(ctx, after); err != nil {
		return err
	}
	for index := before.Size / layout.EntryBundleWidth; index < after.Size/layout.EntryBundleWidth; index++ {
		if _, err := l.dir.Rehash(index, after.Size); err != nil { // a tile that is full is never rewritten: last look
			return err
		}
	}
	if err := l.dir.PutTree(after); err != nil {
		return err
	}
	l.o.reached("state written")
	l.advance(grown, after)
	return nil
}

// after is what the tree is with so many entries, of those that were sequenced.
func (l *Log) after(size uint64) (*compact.Range, checkpoint.Tree, error) {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	grown, err := factory.NewRange(0, l.base.End(), slices.Clone(l.base.Hashes()))
	if err != nil {
		return nil, checkpoint.Tree{}, err
	}
	entries := l.backlog.now().entries
	if size < grown.End() || size-grown.End() > uint64(len(entries)) {
		return nil, checkpoint.Tree{}, fmt.Errorf("the log has %d entries in its tree, want %d to %d: somebody else writes to it",
			size, grown.End(), grown.End()+uint64(len(entries)))
	}
	for _, e := range entries[:size-grown.End()] {
		if err := grown.Append(e.Hash, nil); err != nil {
			return nil, checkpoint.Tree{}, err
		}
	}
	t, err := logdir.TreeOf(grown)
	return grown, t, err
}

// advance takes a tree that is on disk, and was sequenced so.
func (l *Log) advance(r *compact.Range, now checkpoint.Tree) {
	l.base = r
	l.backlog.drop(now)
	signal(l.backlog.grown)
	signal(l.toPublish)
}

// reread reads the state from the disk again after an error. It goes on only when that
// continues what was there before with what was sequenced, as far as that got.
func (l *Log) reread(ctx context.Context) error {
	now, err := l.verifyState(ctx, l.backlog.now().tree)
	if err != nil {
		return err
	}
	grown, want, err := l.after(now.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(now.Root, want.Root) {
		return fmt.Errorf("the log of %d entries has another root than what was sequenced: it was forked", now.Size)
	}
	if err := l.dir.PutTree(now); err != nil { // what is read may not have got to the disk
		return err
	}
	l.advance(grown, now)
	return nil
}

const (
	signTimeout = 10 * time.Second // bounds the signature over a checkpoint, for which nobody waits
	republish   = 10 * time.Minute // how old the checkpoint of a log that doesn't grow gets
)

// publishTrees publishes a checkpoint when the tree has grown, at most once in an
// interval, and when the last one is old, until ctx ends. After an error it tries again.
func (l *Log) publishTrees(ctx context.Context) {
	for next := time.Duration(0); wait.OrWoken(ctx, next, l.toPublish) == nil; {
		err := l.publish(ctx)
		next = republish - l.o.Now().Sub(l.backlog.now().published.Signed())
		if err != nil && ctx.Err() == nil {
			l.o.Logger.WarnContext(ctx, "the checkpoint can't be published; it is tried again", slog.Any("error", err))
			next = 0
		}
		if wait.For(ctx, l.config.CheckpointInterval) != nil {
			return
		}
	}
}

// publish signs a checkpoint over the tree that is on disk and publishes it, unless it
// is published already and not old. One goroutine does so at a time.
func (l *Log) publish(ctx context.Context) error {
	now := l.backlog.now()
	before := now.published
	if before.Raw != nil && now.tree.Size == before.Size && l.o.Now().Sub(before.Signed()) < republish {
		return nil
	}
	raw, err := l.sign(ctx, now)
	if err != nil {
		return err
	}
	head, err := checkpoint.Open(raw, l.verifier)
	if err != nil {
		return err
	}
	if head.Raw, err = l.witnesses.Cosign(ctx, raw, head.Size); err != nil {
		return err
	}
	if err := l.dir.Put(head.Raw, logdir.CheckpointName); err != nil {
		return err
	}
	l.backlog.update(func(p *progress) { p.published = head })
	if err := l.dir.Collect(before.Size, head.Size); err != nil { // the next start sweeps them
		l.o.Logger.WarnContext(ctx, "partial tiles can't be removed", slog.Any("error", err))
	}
	return nil
}

// sign gives the checkpoint of a tree, with the RFC 6962 note signature of
// c2sp.org/static-ct-api, so that one signature serves both kinds of readers. It never
// signs a smaller tree than before, nor another root for the same size, nor anything
// that the durable mark doesn't cover: an older copy of the log would pass every guard,
// and grow another way.
func (l *Log) sign(ctx context.Context, now progress) ([]byte, error) {
	t, last := now.tree, now.published
	if t.Size < last.Size || t.Size == last.Size && last.Root != nil && !bytes.Equal(t.Root, last.Root) {
		return nil, fmt.Errorf("refusing to sign a checkpoint of size %d that contradicts the last one, of size %d", t.Size, last.Size)
	}
	if t.Size > now.marked {
		return nil, fmt.Errorf("refusing to sign a checkpoint of size %d: the high-water mark is at %d", t.Size, now.marked)
	}
	timestamp := max(last.Timestamp, millis(l.o.Now()))
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	return checkpoint.Sign(ctx, l.o.Signer, l.verifier, timestamp, t)
}

// mergeDelay is how long entries have been waiting for a checkpoint; zero where none do.
// Those that wait came after the last checkpoint was signed, and after the last time that
// none waited.
func (l *Log) mergeDelay() time.Duration {
	p, now := l.backlog.now(), l.o.Now()
	if p.published.Size >= p.marked {
		return 0
	}
	return max(0, min(now.Sub(p.published.Signed()), now.Sub(p.behind)))
}

// millis is a time as RFC 6962 writes it; before 1970 it is zero.
func millis(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) }
