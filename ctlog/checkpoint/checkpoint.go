// Package checkpoint reads, verifies and signs the checkpoints of Certificate
// Transparency logs (c2sp.org/static-ct-api): signed notes whose signature is that
// of an RFC 6962 tree head, so that one signature serves both kinds of readers.
package checkpoint

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

const (
	versionV1 = 0 // RFC 6962 §3.2
	treeHash  = 1 // RFC 6962 §3.2: SignatureType tree_hash

	keyHashLength   = 4     // c2sp.org/signed-note: a signature starts with the key's short hash
	timestampLength = 8     // c2sp.org/static-ct-api: RFC6962NoteSignature.timestamp
	algorithmLength = 2 + 2 // RFC 5246 §4.7: hash, signature algorithm, and the signature's length
)

// Tree is a state of a log: how many entries, and the root over them.
type Tree struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

// Head is a verified checkpoint, and what a get-sth answer needs of it.
type Head struct {
	Tree
	Raw       []byte // the whole note, with all its signatures
	Timestamp uint64 // milliseconds since 1970
	Signature []byte // DigitallySigned (RFC 5246 §4.7) over the tree head
}

// Signed is when the log signed the tree head.
func (h Head) Signed() time.Time { return time.UnixMilli(int64(h.Timestamp)) }

// verifier refuses signatures that are too short for the library's, which panics.
type verifier struct{ note.Verifier }

func (v verifier) Verify(text, signature []byte) bool {
	return len(signature) >= timestampLength+algorithmLength && v.Verifier.Verify(text, signature)
}

// NewVerifier makes the verifier of a log's checkpoints. origin is the log's URL
// without its scheme.
func NewVerifier(origin string, key crypto.PublicKey) (note.Verifier, error) {
	text, err := formats.RFC6962VerifierString(origin, key)
	var v note.Verifier
	if err == nil {
		v, err = formats.NewRFC6962Verifier(text)
	}
	if err != nil {
		return nil, fmt.Errorf("describing the log's key: %w", err)
	}
	return verifier{v}, nil
}

// VerifierOf is the verifier of a log's checkpoints, as the trust root describes it.
func VerifierOf(d ctlog.Description) (note.Verifier, error) {
	key, err := ctlog.ParseKey(d.SPKI)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(d.URL)
	if err != nil {
		return nil, fmt.Errorf("the log's URL: %w", err)
	}
	return NewVerifier(u.Host+u.Path, key)
}

// Open verifies a checkpoint and takes the tree head out of it.
func Open(raw []byte, v note.Verifier) (Head, error) {
	n, err := note.Open(raw, note.VerifierList(v))
	if err != nil {
		return Head{}, fmt.Errorf("the checkpoint is not signed by the log: %w", err)
	}
	t, err := ParseText([]byte(n.Text), v.Name())
	if err != nil {
		return Head{}, err
	}
	signature, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil || len(signature) <= keyHashLength+timestampLength {
		return Head{}, errors.New("the checkpoint's signature is malformed")
	}
	signature = signature[keyHashLength:]
	return Head{Tree: t, Raw: raw, Timestamp: binary.BigEndian.Uint64(signature), Signature: signature[timestampLength:]}, nil
}

// FromSTH verifies the JSON of get-sth (RFC 6962 §4.3) as if it were a checkpoint.
func FromSTH(body []byte, v note.Verifier) (Head, error) {
	raw, err := formats.RFC6962STHToCheckpoint(body, v)
	if err != nil {
		return Head{}, fmt.Errorf("the tree head is not signed by the log: %w", err)
	}
	return Open(raw, v)
}

// ParseText reads the three lines of a checkpoint without extensions.
func ParseText(text []byte, origin string) (Tree, error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != origin {
		return Tree{}, errors.New("not a checkpoint of this log")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return Tree{}, errors.New("the checkpoint's size is malformed")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return Tree{}, errors.New("the checkpoint's root is malformed")
	}
	return Tree{Size: size, Root: root}, nil
}

// TreeHead is what a log signs for a tree at a time in milliseconds since 1970
// (RFC 6962 §3.5).
func TreeHead(timestamp uint64, t Tree) []byte {
	b := []byte{versionV1, treeHash}
	b = binary.BigEndian.AppendUint64(b, timestamp)
	b = binary.BigEndian.AppendUint64(b, t.Size)
	return append(b, t.Root...)
}

// Sign makes the checkpoint of a tree, signed at a time in milliseconds since 1970.
func Sign(ctx context.Context, s ctlog.Signer, v note.Verifier, timestamp uint64, t Tree) ([]byte, error) {
	digest := sha256.Sum256(TreeHead(timestamp, t))
	signature, err := s.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint: %w", err)
	}
	if len(signature) > 1<<16-1 {
		return nil, errors.New("signing the checkpoint: the signature is too long")
	}
	text := fmt.Appendf(nil, "%s\n%d\n%s\n", v.Name(), t.Size, base64.StdEncoding.EncodeToString(t.Root))
	return Note(text, ctlog.AppendSignature(binary.BigEndian.AppendUint64(nil, timestamp), signature), v), nil
}

// Note is the checkpoint with the text and the log's signature, which is the
// timestamp and the DigitallySigned (c2sp.org/signed-note).
func Note(text, signature []byte, v note.Verifier) []byte {
	keyed := append(binary.BigEndian.AppendUint32(nil, v.KeyHash()), signature...)
	return fmt.Appendf(nil, "%s\n\u2014 %s %s\n", text, v.Name(), base64.StdEncoding.EncodeToString(keyed))
}
