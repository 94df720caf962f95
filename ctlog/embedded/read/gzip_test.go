package embedded

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"testing"
)

// TestPacked: a full tile is compressed once, a partial one is not kept, and what is
// kept is bounded.
func TestPacked(t *testing.T) {
	t.Parallel()
	var p packed
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil { // it doesn't get smaller
		t.Fatal(err)
	}
	first, err := p.get(tilePath{level: dataLevel}, data)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || !bytes.Equal(plain, data) {
		t.Fatalf("other bytes came out: %v", err)
	}
	if again, err := p.get(tilePath{level: dataLevel}, nil); err != nil || &again[0] != &first[0] {
		t.Errorf("a full tile was compressed again: %v", err)
	}
	if _, err := p.get(tilePath{level: dataLevel, index: 1, width: 3}, data); err != nil || p.find(1) != nil {
		t.Errorf("a partial tile was kept: %v", err)
	}
	for index := range uint64(20) {
		if _, err := p.get(tilePath{level: dataLevel, index: index}, data); err != nil {
			t.Fatal(err)
		}
		if p.find(0) == nil && index < 6 {
			t.Errorf("forgotten after %d tiles, though it was asked for", index)
		}
	}
	if p.bytes > maxPacked || p.recent.Len() != len(p.known) || p.find(19) == nil || p.find(7) != nil {
		t.Errorf("%d bytes in %d tiles", p.bytes, len(p.known))
	}
}
