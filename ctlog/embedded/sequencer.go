package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"
)

const (
	maxBatch = 512       // entries that become durable together, at most
	maxEntry = 256 << 10 // bytes of an entry, without its issuers' fingerprints
)

// submission is an entry on its way into the log.
type submission struct {
	entry  *ctonly.Entry
	placed chan struct{} // closed when the rest is set

	// The place of the entry. It is fixed, and its SCT may leave, when flushed is.
	index   uint64
	flushed *flush
	err     error // it got none
}

// flush is the batches that are made durable together, or one of them.
type flush struct {
	done chan struct{} // closed when err says how it went
	err  error
}

// place gives an entry its place in the log.
func (l *Log) place(ctx context.Context, entry *ctonly.Entry) (*submission, error) {
	if size := len(entry.Certificate) + len(entry.Precertificate); size > maxEntry {
		return nil, fmt.Errorf("the log takes entries of at most %d bytes, and this one has %d", maxEntry, size)
	}
	s := &submission{entry: entry, placed: make(chan struct{})}
	if err := l.enqueue(ctx, s); err != nil {
		return nil, err
	}
	select {
	case <-s.placed:
		return s, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the log: %w", ctx.Err())
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

// sequence is the sequencer: what arrives while a batch is made durable goes with the
// next one. It ends when the queue is closed and empty.
func (l *Log) sequence() {
	defer close(l.drained)
	for first := range l.queue {
		batch := []*submission{first}
		for len(batch) < maxBatch && len(l.queue) > 0 {
			if s, open := <-l.queue; open {
				batch = append(batch, s)
			}
		}
		l.commit(l.ctx, batch)
	}
}

// commit makes a batch durable and answers everyone in it.
func (l *Log) commit(ctx context.Context, batch []*submission) {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	for len(batch) > 0 {
		begin := time.Now()
		err := l.sound(ctx)
		if err == nil {
			err = l.makeRoom(ctx)
		}
		if err == nil {
			if err = l.room(); fault.Warns(err) {
				err = nil
			}
		}
		n := len(batch)
		if err == nil {
			n, err = l.flush(batch)
		} else {
			for _, s := range batch {
				s.err = unavailable(err)
				close(s.placed)
			}
		}
		l.metrics.batch(n, time.Since(begin), err)
		if err != nil {
			l.o.Logger.ErrorContext(ctx, "log batch failed; no SCT was released", slog.Int("entries", n), slog.Any("error", err))
		}
		batch = batch[n:]
	}
}

// flush gives the first n entries of a batch their places, tells those who wait, who
// sign meanwhile, and makes the entries durable.
func (l *Log) flush(batch []*submission) (n int, err error) {
	f := &flush{done: make(chan struct{})}
	defer func() {
		if err != nil {
			f.err = unavailable(err)
		}
		close(f.done)
	}()
	next := frame{Frame: wal.Frame{First: l.head.End()}}
	for _, s := range batch {
		raw := s.entry.LeafData(l.head.End())
		begin := len(next.Entries)
		if n > 0 && begin+len(raw) > logdir.MaxFlush {
			break
		}
		next.Entries = append(next.Entries, raw...)
		e := logdir.Entry{Raw: raw, Hash: rfc6962.DefaultHasher.HashLeaf(s.entry.MerkleTreeLeaf(l.head.End()))}
		next.entries = append(next.entries, e)
		s.index, s.flushed = l.head.End(), f
		close(s.placed)
		if err := l.head.Append(e.Hash, nil); err != nil {
			return n, err
		}
		n++
	}
	if next.after, err = logdir.TreeOf(l.head); err != nil {
		return n, err
	}
	next.Count, next.Root = uint32(n), next.after.Root
	l.unheld = &next
	return n, l.hold()
}

// hold makes the last frame durable, in the file and in the mark at the same time, and
// hands it to the integration. After an error it is called again, for what didn't hold:
// a frame that was in the file twice would be a gap in it.
func (l *Log) hold() error {
	f := l.unheld
	marked := make(chan error, 1)
	go func() {
		marked <- once(&f.marked, func() error {
			return l.mark.Advance(logdir.High{Tree: f.after, First: f.First, Entries: f.Entries})
		})
	}()
	written := once(&f.written, func() error { return l.ahead.Append(f.Frame) })
	if err := errors.Join(written, <-marked); err != nil {
		return err
	}
	l.unheld = nil
	l.backlog.add(f.entries, f.after.Size, l.o.Now())
	return nil
}

// once does what isn't done yet, and notes that it is.
func once(done *bool, do func() error) error {
	if *done {
		return nil
	}
	err := do()
	*done = err == nil
	return err
}

// sound is an error unless the log may go on: its lock is its own, and what failed
// before holds now. Whoever calls it has flushing.
func (l *Log) sound(ctx context.Context) error {
	if err := l.lock.Held(); err != nil {
		return err
	}
	if l.unheld != nil { // it may be on the disk, so that no other may take its place
		if err := l.hold(); err != nil {
			return fmt.Errorf("the last entries don't hold after an earlier error: %w", err)
		}
		l.o.Logger.InfoContext(ctx, "log entries stored after a storage error")
	}
	if l.backlog.now().failed == nil {
		return nil
	}
	l.growing.Lock()
	defer l.growing.Unlock()
	return l.grow(ctx)
}

// makeRoom waits until the entries that aren't in the tree yet leave room for another
// batch.
func (l *Log) makeRoom(ctx context.Context) error {
	for {
		now := l.backlog.now()
		if !now.full() && l.ahead.Fits(logdir.MaxFlush, now.tree.Size) {
			return nil
		}
		if now.failed != nil {
			return now.failed
		}
		select {
		case <-l.backlog.grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
