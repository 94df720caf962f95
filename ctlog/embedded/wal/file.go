package wal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

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
