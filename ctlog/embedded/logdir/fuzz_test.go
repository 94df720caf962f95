package embedded

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(append(make([]byte, 8), 0, 0, 0, 0, 1, 'c', 0, 8), 0, 0, 5, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaves, err := parseBundle(data, 0)
		if err != nil {
			return
		}
		var back []byte
		for _, l := range leaves {
			back = append(back, l.raw...)
		}
		if !bytes.Equal(back, data) {
			t.Error("the entries don't add up to the tile")
		}
	})
}

func FuzzParseMark(f *testing.F) {
	f.Add(encodeMark([32]byte{1}, tree{size: 7, root: make([]byte, 32)}))
	f.Fuzz(func(t *testing.T, slot []byte) {
		id, got, err := parseMark(slot)
		if err == nil && !bytes.Equal(bytes.TrimRight(encodeMark(id, got), "\n"), bytes.TrimRight(slot, "\n")) {
			t.Error("two slots mean the same mark")
		}
	})
}

func FuzzParseTilePath(f *testing.F) {
	for _, s := range []string{"tile/0/000", "tile/data/x001/x234/067.p/9", "tile/5/999.p/255", "tile/0/x000/000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		p, ok := parseTilePath(path)
		if !ok {
			return
		}
		if bytes.Contains([]byte(path), []byte("..")) {
			t.Error("a path that climbs")
		}
		if p.level == dataLevel && path != dataTilePath(p.index, p.width) {
			t.Errorf("%q is another way to write %q", path, dataTilePath(p.index, p.width))
		}
	})
}

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
