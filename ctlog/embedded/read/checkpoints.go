package embedded

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// published remembers the last checkpoint that was verified, so that a read
// costs no signature check until the checkpoint changes.
type published struct {
	open func(raw []byte) (head, error)
	mu   sync.Mutex
	file []byte // of the last one: what was read
	last head   // with the cosignatures that were added
	// next and before are the last two checkpoints with their cosignatures. The file
	// has the one or the other, until it is read again.
	next, before []byte
}

// release has the witnesses cosign a checkpoint and keeps what they gave, before
// the checkpoint is published.
func (l *Log) release(ctx context.Context, checkpoint []byte, t tree) error {
	if l.witnesses == nil {
		return nil
	}
	cosigned, err := l.witnesses.cosign(ctx, checkpoint, t)
	if err != nil {
		return err
	}
	l.published.mu.Lock()
	l.published.before, l.published.next = l.published.next, cosigned
	l.published.mu.Unlock()
	if len(cosigned) == len(checkpoint) {
		return nil
	}
	if err := writeDurably(l.store.path(witnessedName), cosigned); err != nil {
		// Only a restart would miss them.
		l.o.Logger.WarnContext(ctx, "cosignatures can't be kept", slog.String("log", l.about.URL), slog.Any("error", err))
	}
	return nil
}

// head is the published checkpoint. All reads are answered from it and from
// nothing beyond it.
func (l *Log) head(ctx context.Context) (head, error) {
	if err := ctx.Err(); err != nil {
		return head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return l.headNow()
}

// headNow is head for those who have no context, such as metrics.
func (l *Log) headNow() (head, error) {
	raw, err := os.ReadFile(l.store.path(checkpointName))
	if err != nil {
		return head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	l.published.mu.Lock()
	defer l.published.mu.Unlock()
	if bytes.Equal(raw, l.published.file) {
		return l.published.last, nil
	}
	h, err := l.published.open(l.published.cosigned(raw, l.store))
	if err != nil {
		return head{}, err
	}
	if h.size >= l.published.last.size { // a slower reader doesn't turn back the clock
		l.published.last, l.published.file = h, raw
	}
	return h, nil
}

// cosigned is a checkpoint with its cosignatures: those of this process, or those
// that an earlier one kept.
func (p *published) cosigned(raw []byte, s store) []byte {
	for _, known := range [][]byte{p.next, p.before} {
		if bytes.HasPrefix(known, raw) {
			return known
		}
	}
	return s.witnessed(raw)
}

// Published reads the checkpoint in a log's directory and verifies it under the
// log's key, with nothing else of the log opened: how many entries it covers, and
// when it was signed.
func Published(ctx context.Context, c Config, key crypto.PublicKey) (size uint64, signed time.Time, err error) {
	verifier, err := newVerifier(c.Origin(), key)
	if err != nil {
		return 0, time.Time{}, err
	}
	raw, err := store{dir: string(c.Directory)}.ReadCheckpoint(ctx)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	h, err := openCheckpoint(raw, verifier)
	if err != nil {
		return 0, time.Time{}, err
	}
	return h.size, time.UnixMilli(int64(h.timestamp)), nil
}
