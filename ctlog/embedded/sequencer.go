package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/transparency-dev/tessera/ctonly"
)

// maxBatch is the most entries that become durable together.
const maxBatch = 512

// tesseraAge is how long Tessera holds the first entry of a batch. The sequencer has
// gathered the batch by then, so this only has to outlast handing it over.
const tesseraAge = 500 * time.Microsecond

// maxLingers bounds how long a batch waits for callers that keep coming, in linger times.
const maxLingers = 5

// submission is an entry on its way into the log.
type submission struct {
	entry *ctonly.Entry
	done  chan placed // holds one, so that the sequencer never waits for a caller
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

// commitBatches is the sequencer: what arrives while a batch is made durable waits
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
		last, overlap = len(batch), l.commit(l.ctx, batch)
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
			slog.String("log", l.description.URL), slog.Int("entries", len(batch)), slog.Any("error", err))
		err = unavailable(err)
	}
	overlap = len(l.queue) > 0 // not those that are answered now: a lone caller would wait for itself
	for i, s := range batch {
		s.done <- placed{index: first + uint64(i), err: err}
	}
	return overlap
}
