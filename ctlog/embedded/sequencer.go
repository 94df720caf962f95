package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"
)

// maxBatch is the most entries that become durable together.
const maxBatch = 512

// tesseraAge is how long Tessera holds the first entry of a batch. The gate has
// gathered the batch by then, so this only has to outlast handing it over.
const tesseraAge = 500 * time.Microsecond

// maxLingers bounds how long a batch waits for callers that keep coming, in linger times.
const maxLingers = 5

// submission is an entry on its way into the log.
type submission struct {
	entry *ctonly.Entry
	done  chan placed // holds one, so that the gate never waits for a caller
}

type placed struct {
	index uint64
	err   error
}

// place puts an entry into the log and returns its index when it is durable.
func (l *Log) place(ctx context.Context, entry *ctonly.Entry) (uint64, error) {
	s := &submission{entry: entry, done: make(chan placed, 1)}
	if err := l.enqueue(ctx, s); err != nil {
		return 0, err
	}
	select {
	case p := <-s.done:
		return p.index, p.err
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for the log: %w", ctx.Err())
	}
}

func (l *Log) enqueue(ctx context.Context, s *submission) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("submitting to the log: %w", err)
	}
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return fault.New(fault.ShuttingDown, "the transparency log is shutting down; try again").After(time.Second)
	}
	select {
	case l.queue <- s:
		return nil
	default:
		return fault.New(fault.Overloaded, "the transparency log has too many entries waiting; try again").
			With("dependency", "ctlog").After(time.Second)
	}
}

// commitBatches is the gate: what arrives while a batch is made durable waits
// for the next batch. It ends when the queue is closed and empty.
//
// A batch costs the same few milliseconds of file system work whether it has one
// entry or a hundred. So it waits until as many have come as came for the last one:
// those callers are likely to come again. It goes without them when none came for
// the linger time, and after maxLingers of it in any case. A lone caller waits for
// nobody.
func (l *Log) commitBatches() {
	defer close(l.drained)
	linger := time.NewTimer(l.o.Linger)
	defer linger.Stop()
	last, overlap := 0, false
	for first := range l.queue {
		batch := l.take([]*submission{first}, maxBatch)
		expected := last
		if overlap { // these came during the last commit; those it answered come on top
			expected += len(batch)
		}
		batch = l.gather(batch, min(expected, maxBatch), linger)
		last, overlap = len(batch), l.commit(l.life, batch)
	}
}

// take adds what is queued already, up to most entries.
func (l *Log) take(batch []*submission, most int) []*submission {
	for len(batch) < most {
		select {
		case s, open := <-l.queue:
			if !open {
				return batch
			}
			batch = append(batch, s)
		default:
			return batch
		}
	}
	return batch
}

// gather adds what comes until the batch has as many entries as wanted, or
// nobody has come for the linger time.
func (l *Log) gather(batch []*submission, want int, linger *time.Timer) []*submission {
	latest := time.Now().Add(maxLingers * l.o.Linger)
	for len(batch) < want {
		linger.Reset(min(l.o.Linger, time.Until(latest)))
		select {
		case s, open := <-l.queue:
			if !open {
				return batch
			}
			batch = l.take(append(batch, s), maxBatch)
		case <-linger.C:
			return l.take(batch, maxBatch)
		}
	}
	return batch
}

// commit makes a batch durable and answers everyone in it. It reports whether
// others came meanwhile.
func (l *Log) commit(ctx context.Context, batch []*submission) (overlap bool) {
	l.state.Lock()
	defer l.state.Unlock()
	begin := time.Now()
	first, err := l.append(ctx, batch)
	l.metrics.batch(len(batch), time.Since(begin), err)
	if err != nil {
		l.o.Logger.ErrorContext(ctx, "log batch failed; no SCT was released",
			slog.String("log", l.about.URL), slog.Int("entries", len(batch)), slog.Any("error", err))
		err = unavailable(err)
	}
	overlap = len(l.queue) > 0 // not those that are answered now: a lone caller would wait for itself
	for i, s := range batch {
		s.done <- placed{index: first + uint64(i), err: err}
	}
	return overlap
}

// append hands the batch to Tessera, waits until it is durable, checks what
// happened and advances the mark. It returns the index of the first entry. After
// any error the state is suspect.
func (l *Log) append(ctx context.Context, batch []*submission) (uint64, error) {
	if l.suspect != nil {
		if err := l.recover(ctx); err != nil {
			return 0, err
		}
	}
	if err := l.preflight(); err != nil {
		return 0, err
	}
	before := l.tree
	if err := l.integrate(ctx, batch); err != nil {
		l.suspect = err
		return 0, err
	}
	now, err := l.store.treeState()
	if err == nil && now.size != before.size+uint64(len(batch)) {
		err = fmt.Errorf("the log has %d entries, want %d: somebody else writes to it", now.size, before.size+uint64(len(batch)))
	}
	for index := before.size / layout.EntryBundleWidth; err == nil && index < now.size/layout.EntryBundleWidth; index++ {
		err = l.store.rehash(ctx, index, now.size) // a tile that is full is never rewritten: last look
	}
	if err == nil {
		err = l.mark.advance(now)
	}
	if err != nil {
		l.suspect = err
		return 0, err
	}
	l.tree = now
	return before.size, nil
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
		want := l.tree.size + uint64(i)
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
	if err := l.lock.held(); err != nil {
		return err
	}
	// Tessera panics when it can't open this file: on a disk that went read-only,
	// or when descriptors run out. Nobody holds its lock now: the gate is the only writer.
	f, err := os.OpenFile(l.store.path(stateDir, treeStateLock), os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // as Tessera does
	if err != nil {
		return fmt.Errorf("the log's directory can't be written: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("the log's directory can't be written: %w", err)
	}
	return nil
}

// recover reads the state from the disk again after an error, and goes on only
// when it continues what was there before. An error may have come after the state
// was written, so the tree may have grown by entries without an SCT.
func (l *Log) recover(ctx context.Context) error {
	now, err := l.verifyState(ctx, l.tree)
	if err != nil {
		l.suspect = fmt.Errorf("the log's state does not hold after an earlier error: %w", err)
		return l.suspect
	}
	l.o.Logger.InfoContext(ctx, "log state verified after a storage error",
		slog.String("log", l.about.URL), slog.Uint64("size", now.size), slog.Any("after", l.suspect))
	l.tree, l.suspect = now, nil
	return nil
}

// probe writes a file to the log's disk and removes it again.
func (l *Log) probe() error {
	path := l.store.path(stateDir, tempPrefix+"probe")
	if err := writeDurably(path, make([]byte, 4096)); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the probe: %w", err)
	}
	return nil
}
