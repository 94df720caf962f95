package witness

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// FuzzCosignature: whatever a witness answers, what is taken of it is one signature
// line that verifies behind the checkpoint.
func FuzzCosignature(f *testing.F) {
	secret, public, err := note.GenerateKey(rand.Reader, "witness.example")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := formats.NewSignerForCosignatureV1(secret)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := formats.NewVerifierForCosignatureV1(public)
	if err != nil {
		f.Fatal(err)
	}
	text := "log.example\n1\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		f.Fatal(err)
	}
	good := signed[len(text)+1:]
	checkpoint := append([]byte(text+"\n"), "\u2014 log.example AAAAAAAA\n"...)
	f.Add(good)
	f.Add(append([]byte("\u2014 other AAAAAAAA\n"), good...))
	f.Add([]byte("\n\n"))
	// A note's text ends at its last empty line: this makes the log's signature text.
	longer, err := note.Sign(&note.Note{Text: string(checkpoint)}, signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(longer[len(checkpoint):])
	f.Fuzz(func(t *testing.T, answer []byte) {
		line, err := cosignature(checkpoint, answer, verifier, time.Now())
		if err != nil {
			return
		}
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("more than a line: %q", line)
		}
		if n, err := note.Open(append(bytes.Clone(checkpoint), line...), note.VerifierList(verifier)); err != nil || len(n.Sigs) != 1 {
			t.Fatalf("%q does not hold: %v", line, err)
		}
	})
}
