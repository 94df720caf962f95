package embedded

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// Constants of tree head signatures.
const (
	versionV1      = 0 // RFC 6962 §3.2
	treeHash       = 1 // RFC 6962 §3.2: SignatureType tree_hash
	hashSHA256     = 4 // RFC 5246 §7.4.1.4.1
	signatureECDSA = 3 // RFC 5246 §7.4.1.4.1

	noteKeyHashLength   = 4 // c2sp.org/signed-note: a signature starts with the key's short hash
	noteTimestampLength = 8 // c2sp.org/static-ct-api: RFC6962NoteSignature.timestamp
)

// signTimeout bounds the signature over a checkpoint, whose interface carries no
// context of a caller's.
const signTimeout = 10 * time.Second

// checkpointSigner signs checkpoints with the RFC 6962 note signature of
// c2sp.org/static-ct-api, so that one signature serves both kinds of readers.
// It never signs a smaller tree than before, nor another root for the same size.
type checkpointSigner struct {
	verifier note.Verifier
	signer   ctlog.Signer
	now      func() time.Time
	life     context.Context //nolint:containedctx // note.Signer has no context; this is the log's life, ended by Close
	// release is called with each signed checkpoint before anybody gets to see it. Its
	// error keeps the checkpoint from being published; the next one is tried anew.
	release func(ctx context.Context, checkpoint []byte, t tree) error

	mu        sync.Mutex
	last      tree
	timestamp uint64 // of the last signature, milliseconds
}

// newVerifier makes the verifier of the log's checkpoints.
func newVerifier(origin string, key crypto.PublicKey) (note.Verifier, error) {
	text, err := formats.RFC6962VerifierString(origin, key)
	if err != nil {
		return nil, fmt.Errorf("describing the log's key: %w", err)
	}
	v, err := formats.NewRFC6962Verifier(text)
	if err != nil {
		return nil, fmt.Errorf("describing the log's key: %w", err)
	}
	return v, nil
}

// Name is the log's origin.
func (s *checkpointSigner) Name() string { return s.verifier.Name() }

// KeyHash is the short hash of name and key that a note carries.
func (s *checkpointSigner) KeyHash() uint32 { return s.verifier.KeyHash() }

// Sign signs the text of a checkpoint as an RFC6962NoteSignature.
func (s *checkpointSigner) Sign(text []byte) ([]byte, error) {
	t, err := parseCheckpointText(text, s.Name())
	if err != nil {
		return nil, err
	}
	signature, err := s.sign(t)
	if err != nil {
		return nil, err
	}
	if err := s.release(s.life, s.note(text, signature), t); err != nil {
		return nil, err
	}
	return signature, nil
}

// note is the checkpoint as it is published (c2sp.org/signed-note).
func (s *checkpointSigner) note(text, signature []byte) []byte {
	keyed := append(binary.BigEndian.AppendUint32(nil, s.KeyHash()), signature...)
	return fmt.Appendf(nil, "%s\n\u2014 %s %s\n", text, s.Name(), base64.StdEncoding.EncodeToString(keyed))
}

func (s *checkpointSigner) sign(t tree) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.size < s.last.size || (t.size == s.last.size && s.last.root != nil && !bytes.Equal(t.root, s.last.root)) {
		return nil, fmt.Errorf("refusing to sign a checkpoint of size %d that contradicts the last one, of size %d", t.size, s.last.size)
	}
	timestamp := max(s.timestamp, millis(s.now()))
	digest := sha256.Sum256(treeHead(timestamp, t))
	ctx, cancel := context.WithTimeout(s.life, signTimeout)
	defer cancel()
	signature, err := s.signer.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint: %w", err)
	}
	if len(signature) > 1<<16-1 {
		return nil, errors.New("signing the checkpoint: the signature is too long")
	}
	s.last, s.timestamp = t, timestamp
	out := binary.BigEndian.AppendUint64(nil, timestamp)
	out = append(out, hashSHA256, signatureECDSA)
	out = binary.BigEndian.AppendUint16(out, uint16(len(signature)))
	return append(out, signature...), nil
}

// treeHead is what a signed tree head signs (RFC 6962 §3.5).
func treeHead(timestamp uint64, t tree) []byte {
	b := []byte{versionV1, treeHash}
	b = binary.BigEndian.AppendUint64(b, timestamp)
	b = binary.BigEndian.AppendUint64(b, t.size)
	return append(b, t.root...)
}

// parseCheckpointText reads the three lines of a checkpoint without extensions.
func parseCheckpointText(text []byte, origin string) (tree, error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != origin {
		return tree{}, errors.New("not a checkpoint of this log")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return tree{}, errors.New("the checkpoint's size is malformed")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return tree{}, errors.New("the checkpoint's root is malformed")
	}
	return tree{size: size, root: root}, nil
}

// head is a published checkpoint, and what a get-sth answer needs of it.
type head struct {
	tree
	raw       []byte
	timestamp uint64 // milliseconds
	signature []byte // DigitallySigned (RFC 5246 §4.7) over the tree head
}

// openCheckpoint verifies a checkpoint and takes the tree head out of it.
func openCheckpoint(raw []byte, v note.Verifier) (head, error) {
	n, err := note.Open(raw, note.VerifierList(v))
	if err != nil {
		return head{}, fmt.Errorf("the checkpoint is not signed by the log: %w", err)
	}
	t, err := parseCheckpointText([]byte(n.Text), v.Name())
	if err != nil {
		return head{}, err
	}
	signature, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil || len(signature) <= noteKeyHashLength+noteTimestampLength {
		return head{}, errors.New("the checkpoint's signature is malformed")
	}
	signature = signature[noteKeyHashLength:]
	return head{
		tree:      t,
		raw:       raw,
		timestamp: binary.BigEndian.Uint64(signature),
		signature: signature[noteTimestampLength:],
	}, nil
}

// millis is a time as RFC 6962 writes it; before 1970 it is zero.
func millis(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) }
