package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"
)

// encode gives the frame as a segment has it, up to the next page.
func (f Frame) encode(salt []byte) []byte {
	b := append(f.head(salt), f.Entries...)
	return append(b, make([]byte, pages(len(b))-len(b))...)
}

// writer appends frames as the sequencer does.
type writer struct {
	dir     logdir.Dir
	file    *File
	head    *compact.Range
	entries []logdir.Entry
	last    logdir.High // as the mark would have it
}

func newWriter(t *testing.T) *writer {
	t.Helper()
	w := &writer{dir: logdir.Dir(t.TempDir()), head: (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)}
	if err := w.dir.PutTree(logdir.EmptyTree()); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	return w
}

func (w *writer) open(t *testing.T) {
	t.Helper()
	var err error
	if w.file, err = Open(w.dir, w.head.End()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
}

// append appends a frame of so many entries of so many bytes.
func (w *writer) append(t *testing.T, entries, size int) {
	t.Helper()
	f := Frame{First: w.head.End(), Count: uint32(entries)}
	for range entries {
		e := ctonly.Entry{Certificate: bytes.Repeat([]byte{byte(w.head.End())}, size), FingerprintsChain: [][32]byte{{1}}}
		entry := logdir.Entry{Raw: e.LeafData(w.head.End()), Hash: e.MerkleLeafHash(w.head.End())}
		f.Entries, w.entries = append(f.Entries, entry.Raw...), append(w.entries, entry)
		if err := w.head.Append(entry.Hash, nil); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := logdir.TreeOf(w.head)
	if err != nil {
		t.Fatal(err)
	}
	f.Root = tree.Root
	if err := w.file.Append(f); err != nil {
		t.Fatal(err)
	}
	w.last = logdir.High{Tree: tree, First: f.First, Entries: f.Entries}
}

// grow makes the first size entries the tree.
func (w *writer) grow(t *testing.T, size uint64) checkpoint.Tree {
	t.Helper()
	now, err := w.dir.Tree()
	if err == nil {
		err = w.dir.Grow(t.Context(), now.Size, w.entries[now.Size:size])
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.dir.Range(t.Context(), size)
	if err == nil {
		now, err = logdir.TreeOf(r)
	}
	if err == nil {
		err = w.dir.PutTree(now)
	}
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// TestFollow: whatever part of the entries the tree has, the file has the others, through
// several uses of each segment and over a restart.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newWriter(t)
	check := func(tree checkpoint.Tree) {
		t.Helper()
		got, end, err := Follow(t.Context(), w.dir, tree, w.last)
		if err != nil {
			t.Fatal(err)
		}
		if want := w.entries[tree.Size:]; end.End() != w.head.End() || len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("%d entries behind a tree of %d, which end with %d; want %d to %d", len(got), tree.Size, end.End(), len(want), w.head.End())
		}
	}
	tree := logdir.EmptyTree()
	turns, last := 0, -1
	for round := range 60 {
		for _, entries := range []int{1, 150, 2, 150, 7} {
			size := 700
			if round%3 == 0 {
				size = 3000
			}
			if !w.file.Fits(entries*(size+100), tree.Size) {
				t.Fatalf("round %d: no room", round)
			}
			w.append(t, entries, size)
			if w.file.current != last {
				turns, last = turns+1, w.file.current
			}
		}
		check(tree)
		if round%2 == 1 {
			tree = w.grow(t, w.head.End()-uint64(round%5)*63) // in the middle of a frame
			check(tree)
		}
		if round == 31 {
			tree = w.grow(t, w.head.End())
			if err := w.file.Close(); err != nil {
				t.Fatal(err)
			}
			w.open(t)
			check(tree)
		}
	}
	if turns < 4 {
		t.Errorf("the segments were begun %d times", turns)
	}
}

// TestSegmentsWaitForTheTree: no segment begins anew while the tree lacks an entry in it.
func TestSegmentsWaitForTheTree(t *testing.T) {
	t.Parallel()
	w := newWriter(t)
	for w.file.Fits(logdir.MaxFlush, 0) {
		w.append(t, 1, logdir.MaxFlush-200)
	}
	const each = 15 // entries of a flush each that fill a segment
	if n := len(w.entries); n != 2*each {
		t.Errorf("%d entries fill the two segments, want %d", n, 2*each)
	}
	if w.file.Fits(logdir.MaxFlush, each-1) || !w.file.Fits(logdir.MaxFlush, each) {
		t.Error("the first segment is free when the tree has its entries, and not before")
	}
	got, _, err := Follow(t.Context(), w.dir, logdir.EmptyTree(), w.last)
	if err != nil || len(got) != 2*each {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// TestTornTurn: when the first page of a segment that begins anew is torn, nothing is
// lost but what was in the tree.
func TestTornTurn(t *testing.T) {
	t.Parallel()
	w := newWriter(t)
	for range 17 { // fifteen in the first segment, two in the second
		w.append(t, 1, logdir.MaxFlush-200)
	}
	tree := w.grow(t, 15)
	path := w.dir.Path(logdir.StateDir, names[0])
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := encodeHead(bytes.Repeat([]byte{7}, saltSize))
	for _, torn := range [][]byte{head, head[:40], make([]byte, 512), bytes.Repeat([]byte{0x5a}, page)} {
		if err := os.WriteFile(path, append(bytes.Clone(torn), whole[len(torn):]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := Follow(t.Context(), w.dir, tree, w.last); err != nil || len(got) != 2 {
			t.Errorf("%d entries, %v, want 2", len(got), err)
		}
		if _, _, err := Follow(t.Context(), w.dir, logdir.EmptyTree(), w.last); err == nil || !strings.Contains(err.Error(), "entry 15 where entry 0") {
			t.Errorf("entries that only the segment had: %v", err)
		}
	}
}

// TestEachSectorOfTheLastFrame: whichever sectors of the last write got to the disk, in
// whatever order, the file ends before it or with it; and the mark has it.
func TestEachSectorOfTheLastFrame(t *testing.T) {
	t.Parallel()
	w := newWriter(t)
	w.append(t, 3, 1000)
	before := w.last
	at := int(w.file.at)
	path := w.dir.Path(logdir.StateDir, names[0])
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.append(t, 5, 1000)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sectors := (pages(headSize+len(w.last.Entries)) + 511) / 512
	for missing := range 1 << min(sectors, 12) {
		torn := bytes.Clone(whole)
		for s := range sectors {
			if missing&(1<<s) != 0 {
				copy(torn[at+s*512:at+(s+1)*512], old[at+s*512:])
			}
		}
		if missing%97 != 0 && missing > 64 { // a choice of them
			continue
		}
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := Follow(t.Context(), w.dir, logdir.EmptyTree(), before)
		if err != nil || len(got) != 3 && len(got) != 8 || !bytes.Equal(torn, whole) && len(got) == 8 && !bytes.Equal(torn[at:at+headSize+len(w.last.Entries)], whole[at:at+headSize+len(w.last.Entries)]) {
			t.Fatalf("sectors %b missing: %d entries, %v", missing, len(got), err)
		}
		if got, _, err := Follow(t.Context(), w.dir, logdir.EmptyTree(), w.last); err != nil || len(got) != 8 {
			t.Fatalf("sectors %b missing, and the mark has the frame: %d entries, %v", missing, len(got), err)
		}
	}
}

// TestForgedFrames: an entry whose bytes are a whole frame, of this log even, isn't taken
// for one, wherever it lies.
func TestForgedFrames(t *testing.T) {
	t.Parallel()
	salt := bytes.Repeat([]byte{1}, saltSize)
	forged := Frame{First: 9, Count: 1, Entries: []byte("x"), Root: make([]byte, 32)}.encode(bytes.Repeat([]byte{2}, saltSize))
	whole := Frame{First: 3, Count: 1, Entries: bytes.Repeat(forged, 3), Root: make([]byte, 32)}.encode(salt)
	copy(whole[page:], forged) // where a page begins, as in an entry that is laid out for it
	raw := append(encodeHead(salt), whole...)
	s, err := readSegment(bytes.NewReader(raw), int64(len(raw)), 0)
	if err != nil || len(s.frames) != 0 || s.lost != 0 {
		t.Errorf("%+v, %v: the frame is damaged, and what is in it is no other", s, err)
	}
}

// FuzzSegment: what is read of a segment is what it has, one frame after the other.
func FuzzSegment(f *testing.F) {
	salt := bytes.Repeat([]byte{1}, saltSize)
	frame := func(first uint64) []byte {
		return Frame{First: first, Count: 1, Entries: fmt.Appendf(nil, "entry %d", first), Root: make([]byte, 32)}.encode(salt)
	}
	f.Add(bytes.Join([][]byte{encodeHead(salt), frame(3), frame(4)}, nil), uint64(0))
	f.Add(bytes.Join([][]byte{encodeHead(salt), frame(3), make([]byte, page), frame(5)}, nil), uint64(4))
	f.Add(encodeHead(salt)[:100], uint64(0))
	f.Fuzz(func(t *testing.T, raw []byte, from uint64) {
		s, err := readSegment(bytes.NewReader(raw), int64(len(raw)), from)
		if err != nil {
			return
		}
		salt, at := raw[len(segmentMagic):][:saltSize], 0
		for _, frame := range s.frames {
			b := frame.encode(salt)[:headSize+len(frame.Entries)]
			next := bytes.Index(raw[at:], b)
			if next < 0 || frame.End() <= from {
				t.Fatalf("%+v isn't in the segment, or not beyond %d", frame, from)
			}
			at += next + len(b)
		}
	})
}

// FuzzFrame: whatever a frame's numbers say, reading it ends within what is there.
func FuzzFrame(f *testing.F) {
	salt := bytes.Repeat([]byte{1}, saltSize)
	f.Add(uint64(3), uint32(1), uint32(5), []byte("entry"))
	f.Add(uint64(1)<<63, ^uint32(0), ^uint32(0), []byte{})
	f.Fuzz(func(t *testing.T, first uint64, count, length uint32, entries []byte) {
		b := Frame{First: first, Count: count, Entries: entries, Root: make([]byte, 32)}.encode(salt)
		binary.BigEndian.PutUint32(b[len(frameMagic)+12:], length)
		sum := checksum(salt, b[:headSize-32])
		copy(b[headSize-32:], sum[:])
		got, _, ok, err := readFrame(bytes.NewReader(b), salt, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if first+uint64(count) < first || got.End() == 0 {
			return // it wraps around: an entry that no log has
		}
		if want := count > 0 && int(length) == len(entries) && len(entries) <= logdir.MaxFlush; ok != want {
			t.Errorf("read %t, want %t", ok, want)
		}
		if ok && (got.First != first || !bytes.Equal(got.Entries, entries)) {
			t.Errorf("%+v", got)
		}
	})
}
