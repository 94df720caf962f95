// Package wal is the write-ahead file of an embedded log. An entry is durable, and its
// place is fixed, when it is in this file and in the high-water mark; the tree follows
// behind. [File] writes it, [Follow] reads what it has beyond the tree.
package wal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/transparency-dev/merkle/compact"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// The file is two segments that are written in turn. Each begins with a page that has
// its salt, and goes on with frames, one for each flush. Frames begin with a page, so
// that no write touches a sector which another flush has made durable.
const (
	page        = 4096
	segmentSize = 8 << 20

	segmentMagic = "mayfly log write-ahead v1\n"
	saltSize     = 16

	frameMagic = "entries\n"
	headSize   = len(frameMagic) + 8 + 4 + 4 + 3*sha256.Size
)

// head is what a frame begins with, before a checksum of it.
type head struct {
	Magic         [len(frameMagic)]byte
	First         uint64
	Count, Length uint32
	Root, Content [sha256.Size]byte // Content is the checksum of the entries
}

// Frame is the entries that one flush makes durable.
type Frame struct {
	First   uint64 // index of the first of them
	Count   uint32
	Entries []byte // one after the other, each as a data tile has it
	Root    []byte // of the tree that ends with them
}

// End is the index after the frame's last entry.
func (f Frame) End() uint64 { return f.First + uint64(f.Count) }

// pages is how many bytes something of the size takes.
func pages(size int) int { return (size + page - 1) / page * page }

// head gives what a segment with the salt has before the frame's entries. The
// salt is new with each use of a segment and in no checksum elsewhere: neither what the
// segment held before nor anything in an entry can pass for a frame of now.
func (f Frame) head(salt []byte) []byte {
	h := head{[len(frameMagic)]byte([]byte(frameMagic)), f.First, f.Count, uint32(len(f.Entries)), [sha256.Size]byte(f.Root), sha256.Sum256(f.Entries)}
	b, _ := binary.Append(nil, binary.BigEndian, h) // it fails for what has no fixed size
	sum := checksum(salt, b)
	return append(b, sum[:]...)
}

func checksum(salt, b []byte) [sha256.Size]byte { return sha256.Sum256(slices.Concat(salt, b)) }

// parseHead reads the head of a frame; false when there is none.
func parseHead(salt, raw []byte) (h head, ok bool) {
	n, err := binary.Decode(raw, binary.BigEndian, &h)
	if err != nil || len(raw) < headSize || string(h.Magic[:]) != frameMagic {
		return h, false
	}
	sum := checksum(salt, raw[:n])
	return h, bytes.Equal(sum[:], raw[n:headSize]) && h.Count > 0 && h.Length <= logdir.MaxFlush
}

// readFrame reads the frame at a place of a segment, and gives its whole length; false
// when there is none. The entries of one that ends before from aren't read.
func readFrame(r io.ReaderAt, salt []byte, at int64, from uint64) (f Frame, whole int64, ok bool, err error) {
	raw := make([]byte, headSize)
	n, err := r.ReadAt(raw, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return f, 0, false, err
	}
	h, ok := parseHead(salt, raw[:n])
	if !ok {
		return f, 0, false, nil
	}
	f = Frame{First: h.First, Count: h.Count, Root: h.Root[:]}
	if whole = int64(pages(headSize + int(h.Length))); f.End() <= from {
		return f, whole, true, nil
	}
	f.Entries = make([]byte, h.Length)
	if n, err = r.ReadAt(f.Entries, at+int64(headSize)); err != nil && !errors.Is(err, io.EOF) {
		return f, 0, false, err
	}
	sum := sha256.Sum256(f.Entries[:n])
	return f, whole, sum == h.Content, nil
}

// encodeHead gives the first page of a segment.
func encodeHead(salt []byte) []byte {
	b := append([]byte(segmentMagic), salt...)
	sum := sha256.Sum256(b)
	return append(append(b, sum[:]...), make([]byte, page-len(b)-len(sum))...)
}

// segment is what a file of frames holds that end beyond an index.
type segment struct {
	frames []Frame
	lost   int64 // where a frame can't be read though others of these follow it; 0: nowhere
}

// errNoSegment means that a file's first page can't be read: it isn't in use, or damaged.
var errNoSegment = errors.New("no segment of a write-ahead file")

// readSegment reads a segment.
func readSegment(r io.ReaderAt, size int64, from uint64) (s segment, err error) {
	head := make([]byte, page)
	if n, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return s, err
	} else if n < page {
		return s, errNoSegment
	}
	salt := head[len(segmentMagic):][:saltSize]
	if !bytes.Equal(head, encodeHead(salt)) {
		return s, errNoSegment
	}
	bad := int64(0)
	for at := int64(page); at < min(size, segmentSize); {
		f, whole, ok, err := readFrame(r, salt, at, from)
		switch {
		case err != nil:
			return s, err
		case !ok: // never written, or cut short: then none follows
			if bad == 0 {
				bad = at
			}
			at += page
			continue
		case f.End() <= from: // in the tree already
		case bad != 0:
			s.lost = bad
			return s, nil
		default:
			s.frames = append(s.frames, f)
		}
		at += whole
	}
	return s, nil
}

// names are the segments' names in the state's folder of a log.
var names = [2]string{"ahead-0", "ahead-1"}

// growth is by how much a segment grows at once. What is there is written over, which
// costs no more than the write itself.
const growth = 256 << 10

// File is the write-ahead file of an open log, which has its lock. One goroutine uses it.
type File struct {
	segments [2]*durable.Direct
	sizes    [2]int64
	ends     [2]uint64 // the index after the last entry of each

	current int
	salt    []byte
	at      int64 // where the next frame goes
}

// Open begins the file anew. Whatever it held is in the tree, which has next entries.
func Open(d logdir.Dir, next uint64) (_ *File, err error) {
	f := &File{current: 1, ends: [2]uint64{next, next}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for i, name := range names {
		f.segments[i], err = durable.OpenDirect(d.Path(logdir.StateDir, name), os.O_RDWR|os.O_CREATE, 0o644, // the log is public
			pages(headSize+logdir.MaxFlush)+growth)
		if err != nil {
			return nil, fmt.Errorf("opening the write-ahead file: %w", err)
		}
		if err := durable.OwnerOfFolder(f.segments[i].File); err != nil {
			return nil, err
		}
		if f.sizes[i], err = f.segments[i].Seek(0, io.SeekEnd); err != nil {
			return nil, fmt.Errorf("opening the write-ahead file: %w", err)
		}
	}
	if err := durable.SyncFolder(d.Path(logdir.StateDir)); err != nil {
		return nil, fmt.Errorf("opening the write-ahead file: %w", err)
	}
	return f, f.turn()
}

// turn begins the other segment, whose entries are all in the tree.
func (f *File) turn() error {
	next, salt := 1-f.current, make([]byte, saltSize)
	rand.Read(salt) // which never fails
	if err := f.write(next, 0, encodeHead(salt)); err != nil {
		return err
	}
	f.current, f.salt, f.at = next, salt, page
	return nil
}

// Fits reports whether a frame of so many bytes of entries can be appended while the
// tree has so many entries.
func (f *File) Fits(size int, tree uint64) bool {
	return f.at+int64(pages(headSize+size)) <= segmentSize || f.ends[1-f.current] <= tree
}

// Append writes a frame behind the last one, durable when it returns. It must fit. After
// an error it may be there or not, so that no other one may take its place: the same has
// to be appended again.
func (f *File) Append(frame Frame) error {
	if f.at+int64(pages(headSize+len(frame.Entries))) > segmentSize {
		if err := f.turn(); err != nil {
			return err
		}
	}
	if err := f.write(f.current, f.at, frame.head(f.salt), frame.Entries); err != nil {
		return err
	}
	f.at += int64(pages(headSize + len(frame.Entries)))
	f.ends[f.current] = frame.End()
	return nil
}

// write writes into a segment, which grows by more than it needs.
func (f *File) write(segment int, at int64, parts ...[]byte) error {
	end := at
	for _, p := range parts {
		end += int64(len(p))
	}
	if end > f.sizes[segment] {
		whole := min((end+growth-1)/growth*growth, segmentSize)
		parts, end = append(parts, make([]byte, whole-end)), whole
	}
	if err := f.segments[segment].Put(at, parts...); err != nil {
		return fmt.Errorf("writing the write-ahead file: %w", err)
	}
	f.sizes[segment] = max(f.sizes[segment], end)
	return nil
}

// Close gives up the files.
func (f *File) Close() error {
	var failures []error
	for _, s := range f.segments {
		if s != nil {
			failures = append(failures, s.Close())
		}
	}
	return errors.Join(failures...)
}

// Follow gives the entries of a log that are promised, or may be, and aren't in the
// tree that its state has, and the range that ends with the last of them. It refuses
// what doesn't reach the mark or isn't the tree that the mark has seen: an SCT may have
// left for whatever the mark covers. It only reads.
//
// Cut off is only what was being written when the process or the machine died: a last
// frame beyond the mark that isn't whole. File and mark are written together, and
// nothing leaves before both are durable, so one may lack the last frame; then the
// other has it.
func Follow(ctx context.Context, d logdir.Dir, tree checkpoint.Tree, high logdir.High) ([]logdir.Entry, *compact.Range, error) {
	end, err := d.Range(ctx, tree.Size)
	if err != nil {
		return nil, nil, err
	}
	if high.Size <= tree.Size {
		if err := d.GrewFrom(ctx, high.Tree, tree); err != nil {
			return nil, nil, err
		}
	}
	frames, err := read(d, tree.Size)
	if err != nil {
		return nil, nil, err
	}
	last := tree.Size
	if len(frames) > 0 {
		last = frames[len(frames)-1].End()
	}
	if len(high.Entries) > 0 && high.First <= last && last < high.Size {
		frames = append(frames, Frame{First: high.First, Count: uint32(high.Size - high.First), Entries: high.Entries, Root: high.Root})
	}
	var entries []logdir.Entry
	for _, f := range frames {
		leaves, err := logdir.ParseEntries(f.Entries, f.First)
		if err != nil || len(leaves) != int(f.Count) {
			return nil, nil, errors.Join(fmt.Errorf("the write-ahead file's entries from %d on are damaged", f.First), err)
		}
		for i, l := range leaves {
			if f.First+uint64(i) < end.End() {
				continue
			}
			e := logdir.Entry{Raw: l.Raw, Hash: l.Hash()}
			if err := end.Append(e.Hash, nil); err != nil {
				return nil, nil, fmt.Errorf("following the write-ahead file: %w", err)
			}
			entries = append(entries, e)
			if err := verify(end, high.Tree, checkpoint.Tree{Size: f.End(), Root: f.Root}); err != nil {
				return nil, nil, err
			}
		}
	}
	if end.End() < high.Size {
		return nil, nil, fmt.Errorf("the log has %d entries, %d of them in its tree, but had %d before: an older copy", end.End(), tree.Size, high.Size)
	}
	return entries, end, nil
}

// verify compares the range with those of the trees that are as large.
func verify(r *compact.Range, trees ...checkpoint.Tree) error {
	for _, t := range trees {
		if t.Size != r.End() {
			continue
		}
		now, err := logdir.TreeOf(r)
		if err != nil {
			return err
		}
		if !bytes.Equal(now.Root, t.Root) {
			return fmt.Errorf("the log of %d entries has another root than before: it was forked, or is damaged", t.Size)
		}
	}
	return nil
}

// read gives the frames that end beyond an index, which follow each other without a gap.
func read(d logdir.Dir, from uint64) ([]Frame, error) {
	var frames []Frame
	for _, name := range names {
		path := d.Path(logdir.StateDir, name)
		s, err := openSegment(path, from)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, errNoSegment): // the mark says whether that is enough
			continue
		case err != nil:
			return nil, fmt.Errorf("reading the write-ahead file: %w", err)
		case s.lost > 0:
			return nil, fmt.Errorf("the write-ahead file %s is damaged: its entries at byte %d can't be read, and others follow them", path, s.lost)
		}
		frames = append(frames, s.frames...)
	}
	slices.SortFunc(frames, func(a, b Frame) int { return cmp.Compare(a.First, b.First) })
	for i, f := range frames {
		if f.First > from || i > 0 && f.First != from {
			return nil, fmt.Errorf("the write-ahead file goes on with entry %d where entry %d is expected: the tree is an older copy, or a part of the file is lost", f.First, from)
		}
		from = f.End()
	}
	return frames, nil
}

func openSegment(path string, from uint64) (s segment, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readSegment(f, segmentSize, from)
}
