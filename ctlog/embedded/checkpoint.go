package embedded

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"golang.org/x/mod/sumdb/note"
)

// signTimeout bounds the signature over a checkpoint, whose interface carries no
// context of a caller's.
const signTimeout = 10 * time.Second

// checkpointSigner signs checkpoints with the RFC 6962 note signature of
// c2sp.org/static-ct-api, so that one signature serves both kinds of readers.
// It never signs a smaller tree than before, nor another root for the same size, nor
// anything that the durable mark doesn't cover.
type checkpointSigner struct {
	verifier note.Verifier
	signer   ctlog.Signer
	now      func() time.Time
	ctx      context.Context //nolint:containedctx // note.Signer has no context; this is canceled by Close
	// covered waits until the mark covers a tree; its error is why it doesn't.
	covered func(ctx context.Context, t checkpoint.Tree) error
	// release is called with each signed checkpoint before anybody gets to see it. Its
	// error keeps the checkpoint from being published; the next one is tried anew.
	release func(ctx context.Context, raw []byte, t checkpoint.Tree) error

	mu        sync.Mutex
	last      checkpoint.Tree
	timestamp uint64 // of the last signature, milliseconds
}

// Name is the log's origin.
func (s *checkpointSigner) Name() string { return s.verifier.Name() }

// KeyHash is the short hash of name and key that a note carries.
func (s *checkpointSigner) KeyHash() uint32 { return s.verifier.KeyHash() }

// Sign signs the text of a checkpoint as an RFC6962NoteSignature.
func (s *checkpointSigner) Sign(text []byte) ([]byte, error) {
	t, err := checkpoint.ParseText(text, s.Name())
	if err != nil {
		return nil, err
	}
	if err := s.covered(s.ctx, t); err != nil {
		return nil, err
	}
	signature, err := s.sign(t)
	if err != nil {
		return nil, err
	}
	if err := s.release(s.ctx, checkpoint.Note(text, signature, s.verifier), t); err != nil {
		return nil, err
	}
	return signature, nil
}

func (s *checkpointSigner) sign(t checkpoint.Tree) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Size < s.last.Size || (t.Size == s.last.Size && s.last.Root != nil && !bytes.Equal(t.Root, s.last.Root)) {
		return nil, fmt.Errorf("refusing to sign a checkpoint of size %d that contradicts the last one, of size %d", t.Size, s.last.Size)
	}
	timestamp := max(s.timestamp, millis(s.now()))
	digest := sha256.Sum256(checkpoint.TreeHead(timestamp, t))
	ctx, cancel := context.WithTimeout(s.ctx, signTimeout)
	defer cancel()
	signature, err := s.signer.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint: %w", err)
	}
	if len(signature) > 1<<16-1 {
		return nil, errors.New("signing the checkpoint: the signature is too long")
	}
	s.last, s.timestamp = t, timestamp
	return ctlog.AppendSignature(binary.BigEndian.AppendUint64(nil, timestamp), signature), nil
}

// cover is the tree that the durable mark has. The storage asks for a checkpoint as soon
// as it has written a tree, which is a moment before the mark goes up to it. An older
// copy of the log would pass every guard after that moment, and grow another way than a
// checkpoint that was signed in it.
type cover struct {
	mu     sync.Mutex
	tree   checkpoint.Tree
	raised chan struct{} // closed when tree changes; nil while nobody waits
}

func (c *cover) raise(t checkpoint.Tree) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tree = t
	if c.raised != nil {
		close(c.raised)
		c.raised = nil
	}
}

// reaches is the tree, and, where it is smaller than size, a channel that is closed when
// it isn't the tree any more.
func (c *cover) reaches(size uint64) (checkpoint.Tree, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tree.Root != nil && size <= c.tree.Size {
		return c.tree, nil
	}
	if c.raised == nil {
		c.raised = make(chan struct{})
	}
	return c.tree, c.raised
}

// covered waits until the mark covers the tree, and verifies that it does.
func (l *Log) covered(ctx context.Context, t checkpoint.Tree) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	for {
		mark, raised := l.cover.reaches(t.Size)
		if raised == nil {
			return l.dir.GrewFrom(ctx, t, mark)
		}
		select {
		case <-raised:
		case <-ctx.Done():
			return fmt.Errorf("refusing to sign a checkpoint of size %d: the high-water mark stays at %d", t.Size, mark.Size)
		}
	}
}

// release has the witnesses cosign a checkpoint and keeps what they gave, before
// the checkpoint is published.
func (l *Log) release(ctx context.Context, raw []byte, t checkpoint.Tree) error {
	if l.witnesses == nil {
		return nil
	}
	cosigned, err := l.witnesses.Cosign(ctx, raw, t.Size)
	if err != nil {
		return err
	}
	l.reads.Announce(cosigned)
	if len(cosigned) == len(raw) {
		return nil
	}
	if err := l.dir.PutCosigned(cosigned); err != nil {
		// Only a restart would miss them.
		l.o.Logger.WarnContext(ctx, "cosignatures can't be kept", slog.String("log", l.description.URL), slog.Any("error", err))
	}
	return nil
}

// millis is a time as RFC 6962 writes it; before 1970 it is zero.
func millis(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) }
