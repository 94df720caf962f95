// Package wal is the write-ahead file of an embedded log. An entry is durable, and its
// place is fixed, when it is in this file and in the high-water mark; the tree follows
// behind. [File] writes it, [Follow] reads what it has beyond the tree.
package wal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
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
	b := make([]byte, 0, headSize)
	b = append(b, frameMagic...)
	b = binary.BigEndian.AppendUint64(b, f.First)
	b = binary.BigEndian.AppendUint32(b, f.Count)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Entries)))
	b = append(b, f.Root...)
	content := sha256.Sum256(f.Entries)
	b = append(b, content[:]...)
	sum := checksum(salt, b)
	return append(b, sum[:]...)
}

func checksum(salt, b []byte) [sha256.Size]byte { return sha256.Sum256(slices.Concat(salt, b)) }

// parseHead reads the head of a frame, without its entries, of which it gives the number
// of bytes and the checksum; false when there is none.
func parseHead(salt, raw []byte) (f Frame, length int, content []byte, ok bool) {
	if len(raw) < headSize || string(raw[:len(frameMagic)]) != frameMagic {
		return f, 0, nil, false
	}
	signed := raw[:headSize-sha256.Size]
	if sum := checksum(salt, signed); !bytes.Equal(sum[:], raw[len(signed):headSize]) {
		return f, 0, nil, false
	}
	numbers := signed[len(frameMagic):]
	f.First, f.Count = binary.BigEndian.Uint64(numbers), binary.BigEndian.Uint32(numbers[8:])
	length = int(binary.BigEndian.Uint32(numbers[12:]))
	f.Root, content = numbers[16:16+sha256.Size], numbers[16+sha256.Size:]
	return f, length, content, f.Count > 0 && length <= logdir.MaxFlush
}

// readFrame reads the frame at a place of a segment, and gives its whole length; false
// when there is none. The entries of one that ends before from aren't read.
func readFrame(r io.ReaderAt, salt []byte, at int64, from uint64) (f Frame, whole int64, ok bool, err error) {
	head := make([]byte, headSize)
	n, err := r.ReadAt(head, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return f, 0, false, err
	}
	f, length, content, ok := parseHead(salt, head[:n])
	if !ok {
		return f, 0, false, nil
	}
	if whole = int64(pages(headSize + length)); f.End() <= from {
		return f, whole, true, nil
	}
	f.Entries = make([]byte, length)
	if n, err = r.ReadAt(f.Entries, at+int64(headSize)); err != nil && !errors.Is(err, io.EOF) {
		return f, 0, false, err
	}
	sum := sha256.Sum256(f.Entries[:n])
	return f, whole, bytes.Equal(sum[:], content), nil
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
