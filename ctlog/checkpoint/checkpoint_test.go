package checkpoint_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"golang.org/x/mod/sumdb/note"
)

const origin = "log.example/2027"

// head signs a tree head: the note signature of its checkpoint.
func head(t *testing.T, key *ctlogtest.Signer, tree checkpoint.Tree, at time.Time) []byte {
	t.Helper()
	digest := sha256.Sum256(checkpoint.TreeHead(uint64(at.UnixMilli()), tree))
	signature, err := key.Sign(t.Context(), digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return ctlog.AppendSignature(binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli())), signature)
}

func verifier(t *testing.T, key *ctlogtest.Signer) note.Verifier {
	t.Helper()
	v, err := checkpoint.NewVerifier(origin, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A checkpoint and a signed tree head say the same, and only under the log's key.
func TestOpenTakesWhatTheLogSignedAndNothingElse(t *testing.T) {
	t.Parallel()
	key, at := ctlogtest.NewSigner(t), time.UnixMilli(1_800_000_000_000)
	v, stranger := verifier(t, key), verifier(t, ctlogtest.NewSigner(t))
	tree := checkpoint.Tree{Size: 7, Root: bytes.Repeat([]byte{1}, 32)}
	text := fmt.Sprintf("%s\n7\n%s\n", origin, base64.StdEncoding.EncodeToString(tree.Root))
	signature := head(t, key, tree, at)
	raw := checkpoint.Note([]byte(text), signature, v)
	sth, err := json.Marshal(map[string]any{
		"tree_size": 7, "timestamp": at.UnixMilli(), "sha256_root_hash": tree.Root, "tree_head_signature": signature[8:],
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(v note.Verifier) (checkpoint.Head, error){
		"checkpoint": func(v note.Verifier) (checkpoint.Head, error) { return checkpoint.Open(raw, v) },
		"tree head":  func(v note.Verifier) (checkpoint.Head, error) { return checkpoint.FromSTH(sth, v) },
	} {
		h, err := open(v)
		if err != nil || h.Size != 7 || !bytes.Equal(h.Root, tree.Root) || !h.Signed().Equal(at) || !bytes.Equal(h.Signature, signature[8:]) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
		if _, err := open(stranger); err == nil || !strings.Contains(err.Error(), "not signed by the log") {
			t.Errorf("%s, another key: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"extension":    text + "more\n",
		"another name": strings.Replace(text, "2027", "2028", 1),
		"another size": strings.Replace(text, "\n7\n", "\n8\n", 1),
		"endless size": strings.Replace(text, "\n7\n", "\n9223372036854775808\n", 1),
	} {
		if _, err := checkpoint.Open(checkpoint.Note([]byte(text), signature, v), v); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// However short a signature is that bears the key's hash, it is refused. The library's
// verifier panics on one that ends behind its timestamp.
func TestOpenRefusesShortSignatures(t *testing.T) {
	t.Parallel()
	key := ctlogtest.NewSigner(t)
	v := verifier(t, key)
	tree := checkpoint.Tree{Size: 7, Root: make([]byte, 32)}
	text := fmt.Sprintf("%s\n7\n%s\n", origin, base64.StdEncoding.EncodeToString(tree.Root))
	signature := head(t, key, tree, time.Now())
	for length := range 16 {
		if _, err := checkpoint.Open(checkpoint.Note([]byte(text), signature[:length], v), v); err == nil {
			t.Errorf("a signature of %d bytes is taken", length)
		}
	}
}
