package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/DeRuina/timberjack"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// fileMode is the mode of every file that the package creates.
const fileMode = 0o600

// maxTorn bounds how far back a cut line is looked for; a batch is never longer.
const maxTorn = maxBatch

// storage is what the rotating library gives, and where tests put faults.
// Rotation happens only at the start of a Write, so Sync flushes all of the last one.
type storage interface {
	Write(p []byte) (int, error)
	Sync() error
	Close() error
}

// disk is one rotated file. It is used by one goroutine.
type disk struct {
	path    string
	open    func() storage
	current storage     // nil before the first write and after a failure
	known   os.FileInfo // the file whose folder entry is durable
}

// usable refuses a path without a folder, and what isn't a regular file where
// there is something: a device or a pipe can't be made durable.
func usable(path string) error {
	if path == "" {
		return errors.New("the audit trail has no path")
	}
	if _, err := os.Stat(filepath.Dir(path) + string(filepath.Separator)); err != nil { // which a file hasn't
		return fmt.Errorf("the folder of the audit trail: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the audit trail: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("the audit trail %s is not a regular file; its records could not be made durable", path)
	}
	return nil
}

func newDisk(path string, r Rotation) *disk {
	return &disk{path: path, open: func() storage { return rotating(path, r) }}
}

// rotating is the library's writer. Compressed or not, only size rotates, so the
// library starts no goroutine but the one that prunes, which its Close ends.
func rotating(path string, r Rotation) storage {
	compression := "none"
	if r.Compress {
		compression = "gzip"
	}
	return &timberjack.Logger{
		Filename: path, MaxSize: r.MaxSizeMB, MaxBackups: r.MaxBackups, MaxAge: r.MaxAgeDays,
		Compression: compression, FileMode: fileMode,
	}
}

// append makes p durable. After an error some of p may be in the file; the next
// step is repair.
func (d *disk) append(p []byte) error {
	if d.current == nil {
		d.current = d.open()
	}
	n, err := d.current.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = d.current.Sync()
	}
	if err == nil {
		err = d.syncNew()
	}
	if err != nil {
		return fmt.Errorf("writing the audit trail: %w", err)
	}
	return nil
}

// syncNew makes the folder's entries durable when the file at path is a new one,
// created or rotated since the last time.
func (d *disk) syncNew() error {
	info, err := os.Stat(d.path)
	if err != nil || d.known != nil && os.SameFile(d.known, info) {
		return err
	}
	if err = durable.SyncFolder(filepath.Dir(d.path)); err == nil {
		d.known = info
	}
	return err
}

// repair closes what is open and cuts the file after its last whole line. It
// gives the cut-off bytes, which no caller was told are durable, and the hash of the
// line that is the last one now, which may be that of the part before.
//
// The writer is closed first because it may hold the file without O_APPEND: its
// next write would leave a hole after a cut.
func (d *disk) repair() (torn []byte, tip [sha256.Size]byte, err error) {
	if err := d.close(); err != nil {
		return nil, tip, err
	}
	var last []byte
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err == nil {
		if err = recognise(f); err == nil {
			last, torn, err = cutTail(f)
		}
		err = errors.Join(err, f.Close())
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	switch {
	case err != nil:
		return nil, tip, fmt.Errorf("repairing the audit trail: %w", err)
	case last != nil:
		return torn, hashOf(last), nil
	}
	tip, err = lastOfParts(d.path)
	return torn, tip, err
}

// recognise refuses a file that doesn't begin as a record does, before anything
// is cut from it or added: the path may name somebody else's file by mistake.
func recognise(f *os.File) error {
	var first [1]byte
	switch _, err := f.ReadAt(first[:], 0); {
	case errors.Is(err, io.EOF):
		return nil // empty
	case err != nil:
		return err
	case first[0] != '{':
		return fmt.Errorf("%s is not an audit trail: it doesn't begin with a record; move it away or name another path", f.Name())
	}
	return nil
}

// cutTail cuts f after its last new line. It gives the last line, nil where there is
// none, and what followed it.
func cutTail(f *os.File) (last, torn []byte, err error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, nil, err
	}
	from := max(0, info.Size()-maxTorn)
	tail := make([]byte, info.Size()-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return nil, nil, err
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	if whole == 0 && from > 0 {
		return nil, nil, fmt.Errorf("no end of a line in the last %d bytes: is this an audit trail?", len(tail))
	}
	if whole > 0 {
		last = tail[bytes.LastIndexByte(tail[:whole-1], '\n')+1 : whole]
	}
	if whole == len(tail) {
		return last, nil, nil
	}
	if err := f.Truncate(from + int64(whole)); err != nil {
		return nil, nil, err
	}
	return last, tail[whole:], f.Sync()
}

// close ends the writer. What was appended is durable already.
func (d *disk) close() error {
	if d.current == nil {
		return nil
	}
	current := d.current
	d.current = nil
	if err := current.Close(); err != nil {
		return fmt.Errorf("closing the audit trail: %w", err)
	}
	return nil
}
