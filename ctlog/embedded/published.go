package embedded

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"sync"
	"time"
)

// published remembers the last checkpoint that was verified, so that a read
// costs no signature check until the checkpoint changes.
type published struct {
	open func(raw []byte) (head, error)
	mu   sync.Mutex
	last head
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
	if bytes.Equal(raw, l.published.last.raw) {
		return l.published.last, nil
	}
	h, err := l.published.open(raw)
	if err != nil {
		return head{}, err
	}
	if h.size >= l.published.last.size { // a slower reader doesn't turn back the clock
		l.published.last = h
	}
	return h, nil
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
