package embedded

import (
	"context"
	"fmt"
	"os"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
)

// append hands the batch to Tessera, waits until it is durable, checks what
// happened and advances the mark. It returns the index of the first entry. After
// any error the state must be read again.
func (l *Log) append(ctx context.Context, batch []*submission) (uint64, error) {
	if l.unverified != nil {
		if err := l.recover(ctx); err != nil {
			return 0, err
		}
	}
	if err := l.preflight(); err != nil {
		return 0, err
	}
	before := l.tree
	if err := l.integrate(ctx, batch); err != nil {
		l.unverified = err
		return 0, err
	}
	now, err := l.dir.Tree()
	if err == nil && now.Size != before.Size+uint64(len(batch)) {
		err = fmt.Errorf("the log has %d entries, want %d: somebody else writes to it", now.Size, before.Size+uint64(len(batch)))
	}
	for index := before.Size / layout.EntryBundleWidth; err == nil && index < now.Size/layout.EntryBundleWidth; index++ {
		err = l.dir.Rehash(ctx, index, now.Size) // a tile that is full is never rewritten: last look
	}
	if err == nil {
		err = l.hold(now, before)
	}
	if err != nil {
		l.unverified = err
		return 0, err
	}
	return before.Size, nil
}

// hold makes a tree that was verified the log's: the mark goes up to it, from where it
// is, and then it may be signed.
func (l *Log) hold(now, mark checkpoint.Tree) error {
	if now.Size != mark.Size || mark.Root == nil {
		if err := l.mark.Advance(now); err != nil {
			return err
		}
	}
	l.tree = now
	l.cover.raise(now)
	return nil
}

// integrate adds the entries and waits for all of them. The entries must follow
// the tree without a gap and in order.
func (l *Log) integrate(ctx context.Context, batch []*submission) error {
	futures := make([]tessera.IndexFuture, len(batch))
	for i, s := range batch {
		futures[i] = l.add(ctx, s.entry)
	}
	var failures []error
	for i, future := range futures {
		got, err := future()
		want := l.tree.Size + uint64(i)
		switch {
		case err != nil:
			failures = append(failures, err)
		case got.Index != want:
			failures = append(failures, fmt.Errorf("an entry got the index %d, want %d: somebody else writes to the log", got.Index, want))
		}
	}
	if len(failures) > 0 {
		// One storage error fails the whole batch; hundreds of copies help nobody.
		return fmt.Errorf("%d of %d entries failed, the first: %w", len(failures), len(batch), failures[0])
	}
	return nil
}

// preflight looks for what Tessera would answer with a panic, and for a stolen lock.
func (l *Log) preflight() error {
	if err := l.lock.Held(); err != nil {
		return err
	}
	// Tessera panics when it can't open this file: on a disk that went read-only,
	// or when descriptors run out. Nobody holds its lock now: the sequencer is the only writer.
	f, err := os.OpenFile(l.dir.Path(logdir.StateDir, logdir.TreeStateLock), os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // as Tessera does
	if err != nil {
		return fmt.Errorf("the log's directory can't be written: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("the log's directory can't be written: %w", err)
	}
	return nil
}
