package read

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"sync"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// checkpointCache remembers the last checkpoint that was verified, so that a read
// costs no signature check until the checkpoint changes.
type checkpointCache struct {
	mu   sync.Mutex
	file []byte          // of the last one: what was read
	last checkpoint.Head // with the cosignatures that were added
	// next and before are the last two checkpoints with their cosignatures. The file
	// has the one or the other, until it is read again.
	next, before []byte
}

// Announce tells of a checkpoint that is published next, with its cosignatures.
func (a *API) Announce(cosigned []byte) {
	c := &a.checkpoints
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.next = c.next, cosigned
}

// Head is the published checkpoint. All reads are answered from it and from
// nothing beyond it.
func (a *API) Head(ctx context.Context) (checkpoint.Head, error) {
	if err := ctx.Err(); err != nil {
		return checkpoint.Head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return a.HeadNow()
}

// HeadNow is Head for those who have no context, such as metrics.
func (a *API) HeadNow() (checkpoint.Head, error) {
	raw, err := os.ReadFile(a.o.Dir.Path(logdir.CheckpointName))
	if err != nil {
		return checkpoint.Head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c := &a.checkpoints
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Equal(raw, c.file) {
		return c.last, nil
	}
	h, err := checkpoint.Open(c.cosigned(raw, a.o.Dir), a.o.Verifier)
	if err != nil {
		return checkpoint.Head{}, err
	}
	if h.Size >= c.last.Size { // a slower reader doesn't turn back the clock
		c.last, c.file = h, raw
	}
	return h, nil
}

// cosigned is a checkpoint with its cosignatures: those of this process, or those
// that an earlier one kept. The caller holds mu.
func (c *checkpointCache) cosigned(raw []byte, d logdir.Dir) []byte {
	for _, known := range [][]byte{c.next, c.before} {
		if bytes.HasPrefix(known, raw) {
			return known
		}
	}
	return d.Cosigned(raw)
}

// Published reads the checkpoint in a log's directory and verifies it under the
// log's key, with nothing else of the log opened.
func Published(c ctlog.EmbeddedConfig, key crypto.PublicKey) (checkpoint.Head, error) {
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	if err != nil {
		return checkpoint.Head{}, err
	}
	return logdir.Dir(c.Directory).OpenCheckpoint(verifier)
}
