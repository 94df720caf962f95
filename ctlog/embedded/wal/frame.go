// Package wal is the write-ahead file of an embedded log. An entry is durable, and its
// place is fixed, when it is in this file and in the high-water mark; the tree follows
// behind. [File] writes it, [Follow] reads what it has beyond the tree.
package wal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// The file is two segments that are written in turn. Each begins with a page that has
// its salt, and goes on with frames, one for each flush. Frames begin with a page, so
// that no write touches a sector which another flush has made durable.
const (
	page        = 4096
	segmentSize = 4 << 20

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

// encode gives the frame as a segment with the salt has it, filled up with zeros. The
// salt is new with each use of a segment and in no checksum elsewhere: neither what the
// segment held before nor anything in an entry can pass for a frame of now.
func (f Frame) encode(salt []byte) []byte {
	b := make([]byte, 0, pages(headSize+len(f.Entries)))
	b = append(b, frameMagic...)
	b = binary.BigEndian.AppendUint64(b, f.First)
	b = binary.BigEndian.AppendUint32(b, f.Count)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Entries)))
	b = append(b, f.Root...)
	content := sha256.Sum256(f.Entries)
	b = append(b, content[:]...)
	sum := checksum(salt, b)
	b = append(append(b, sum[:]...), f.Entries...)
	return b[:cap(b)]
}

func checksum(salt, b []byte) [sha256.Size]byte { return sha256.Sum256(slices.Concat(salt, b)) }

// parseFrame reads the frame that raw begins with; false when there is none.
func parseFrame(salt, raw []byte) (f Frame, ok bool) {
	if len(raw) < headSize || string(raw[:len(frameMagic)]) != frameMagic {
		return f, false
	}
	signed := raw[:headSize-sha256.Size]
	if sum := checksum(salt, signed); !bytes.Equal(sum[:], raw[len(signed):headSize]) {
		return f, false
	}
	numbers := signed[len(frameMagic):]
	f.First, f.Count = binary.BigEndian.Uint64(numbers), binary.BigEndian.Uint32(numbers[8:])
	length := int(binary.BigEndian.Uint32(numbers[12:]))
	f.Root = numbers[16 : 16+sha256.Size]
	if length > logdir.MaxFlush || len(raw) < headSize+length {
		return f, false
	}
	f.Entries = raw[headSize : headSize+length]
	content := sha256.Sum256(f.Entries)
	return f, f.Count > 0 && bytes.Equal(content[:], numbers[16+sha256.Size:])
}

// encodeHead gives the first page of a segment.
func encodeHead(salt []byte) []byte {
	b := append([]byte(segmentMagic), salt...)
	sum := sha256.Sum256(b)
	return append(append(b, sum[:]...), make([]byte, page-len(b)-len(sum))...)
}

// segment is what a file of frames holds.
type segment struct {
	frames []Frame
	lost   int // where a frame can't be read though others follow it; 0: nowhere
	behind []Frame
}

// parseSegment reads a segment. An error means that its first page can't be read: it is
// not in use, or was damaged.
func parseSegment(raw []byte) (s segment, err error) {
	head := len(segmentMagic) + saltSize + sha256.Size
	if len(raw) < page || !strings.HasPrefix(string(raw[:head]), segmentMagic) {
		return s, fmt.Errorf("no segment of a write-ahead file")
	}
	salt := raw[len(segmentMagic):][:saltSize]
	if !bytes.Equal(raw[:page], encodeHead(salt)) {
		return s, fmt.Errorf("its first page is damaged")
	}
	for at := page; at < len(raw); {
		f, ok := parseFrame(salt, raw[at:])
		switch {
		case !ok: // never written, or cut short: then none follows
			if at += page; s.lost == 0 {
				s.lost = at - page
			}
			continue
		case s.lost == 0:
			s.frames = append(s.frames, f)
		default:
			s.behind = append(s.behind, f)
		}
		at += pages(headSize + len(f.Entries))
	}
	if len(s.behind) == 0 {
		s.lost = 0
	}
	return s, nil
}
