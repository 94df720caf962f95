package embedded

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

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
	if len(head.Raw) > len(raw) {
		if err := l.dir.PutCosigned(head.Raw); err != nil { // only a restart would miss them
			l.o.Logger.WarnContext(ctx, "cosignatures can't be kept", slog.Any("error", err))
		}
	}
	if err := l.dir.Put(raw, logdir.CheckpointName); err != nil {
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
