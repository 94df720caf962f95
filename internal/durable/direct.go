//go:build !windows

package durable

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sector is what a disk writes whole, in whose multiples it is written to directly.
const sector = 512

// Direct is a file whose writes are durable when they return, and go around the page
// cache where the file system lets them: what is small costs the disk little, and what a
// failed write has left can't be read as if it were there. What is read before the first
// write comes by the cache. One goroutine writes.
type Direct struct {
	*os.File
	buffer []byte // direct writes are of aligned memory
	begun  bool
}

// OpenDirect opens a file as os.OpenFile does. A write has at most so many bytes.
func OpenDirect(path string, flags int, mode os.FileMode, most int) (*Direct, error) {
	f, err := os.OpenFile(path, flags|unix.O_DSYNC, mode)
	if err != nil {
		return nil, err
	}
	buffer, err := unix.Mmap(-1, 0, most+sector, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping memory: %w", err), f.Close())
	}
	return &Direct{File: f, buffer: buffer}, nil
}

// Put writes parts one after the other at a multiple of 512, and zeros up to the next one.
func (d *Direct) Put(at int64, parts ...[]byte) error {
	if d.buffer == nil {
		return os.ErrClosed
	}
	n := 0
	for _, p := range parts {
		if n+len(p) > len(d.buffer)-sector {
			return fmt.Errorf("a write of more than %d bytes", len(d.buffer)-sector)
		}
		n += copy(d.buffer[n:], p)
	}
	whole := (n + sector - 1) / sector * sector
	clear(d.buffer[n:whole])
	if !d.begun {
		d.begun = true
		_, _ = unix.FcntlInt(d.Fd(), unix.F_SETFL, directly) // a file system that can't goes on as before
	}
	_, err := d.WriteAt(d.buffer[:whole], at)
	if errors.Is(err, unix.EINVAL) { // the disk's own sectors are larger
		if _, err := unix.FcntlInt(d.Fd(), unix.F_SETFL, 0); err != nil {
			return fmt.Errorf("writing through the page cache: %w", err)
		}
		_, err = d.WriteAt(d.buffer[:whole], at)
	}
	return err
}

// Close gives up the file. A second one does nothing but fail: by then the memory may be
// another's.
func (d *Direct) Close() error {
	buffer := d.buffer
	if d.buffer = nil; buffer == nil {
		return os.ErrClosed
	}
	return errors.Join(d.File.Close(), unix.Munmap(buffer))
}
