package audit

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxLine bounds a line that is read, and so the memory of reading. No line that
// this package writes is nearly as long (maxRecord).
const maxLine = 1 << 20

// overlap is how far the times of records may be out of their order.
const overlap = time.Minute

// compressed is what a compressed file's name ends with.
const compressed = ".gz"

// LineError is about a line of the trail that is no record.
type LineError struct {
	Part string // the file
	Line int    // its number, from 1
	Err  error
}

func (e *LineError) Error() string {
	return fmt.Sprintf("the audit trail %s, line %d, can't be read: %v", e.Part, e.Line, e.Err)
}

func (e *LineError) Unwrap() error { return e.Err }

// PartError is about a compressed file of the trail that is damaged. What could be read
// of it is read like the rest.
type PartError struct {
	Part string // the file
	Err  error
}

func (e *PartError) Error() string {
	return fmt.Sprintf("the audit trail %s is damaged, and only read as far as it can be: %v", e.Part, e.Err)
}

func (e *PartError) Unwrap() error { return e.Err }

// Follower reads an audit trail from a time on, and goes on as it grows, rotates
// and is compressed. It isn't safe for concurrent use.
type Follower struct {
	path   string
	since  time.Time
	only   Type
	marker []byte // in every line of that type

	file    *os.File
	name    string // of file, as it is called uncompressed
	offset  int64  // of the first line that wasn't read
	line    int    // its number, from 0
	midLine bool   // offset is inside of a line that is too long
	latest  time.Time
}

// Follow reads the trail whose current file is at path: events of one type (""
// takes all), and none from before since. There need not be a trail yet.
func Follow(path string, since time.Time, only Type) *Follower {
	f := &Follower{path: path, since: since, only: only}
	if only != "" {
		f.marker = []byte(`"` + typePrefix + string(only) + `"`)
	}
	return f
}

// Unread yields the events that are on record and weren't yielded before, the
// oldest file first. A line that can't be read is a *[LineError], after which it goes
// on; any other error ends it, and the next Unread tries again. That goes on from a
// damaged part, too, whose *[PartError] comes once. An event may come
// twice where files were rotated away unseen, but none is left out.
func (f *Follower) Unread() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if err := f.open(); err != nil {
			yield(Event{}, err)
			return
		}
		for buffer := make([]byte, maxLine); f.file != nil; {
			n, err := f.file.ReadAt(buffer, f.offset)
			if err != nil && !errors.Is(err, io.EOF) {
				yield(Event{}, fmt.Errorf("reading the audit trail: %w", err))
				return
			}
			whole := buffer[:bytes.LastIndexByte(buffer[:n], '\n')+1]
			switch {
			case len(whole) > 0:
				if !f.lines(whole, yield) {
					return
				}
			case n == len(buffer): // no line is as long
				f.offset, f.midLine = f.offset+int64(n), true
			default: // nothing more, or a line that is being written
				if moved, err := f.next(); err != nil || !moved {
					if err != nil {
						yield(Event{}, err)
					}
					return
				}
			}
		}
	}
}

// lines yields the events of whole lines.
func (f *Follower) lines(whole []byte, yield func(Event, error) bool) bool {
	for line := range bytes.Lines(whole) {
		f.offset += int64(len(line))
		f.line++
		e, wanted, err := f.parse(line)
		if err != nil {
			e, wanted, err = Event{}, true, &LineError{Part: f.name, Line: f.line, Err: err}
		}
		if wanted && !yield(e, err) {
			return false
		}
	}
	return true
}

// parse reads a line; its event is wanted when it has the type and the time for it.
func (f *Follower) parse(line []byte) (e Event, wanted bool, err error) {
	if f.midLine {
		f.midLine = false
		return e, false, fmt.Errorf("it is longer than %d bytes", maxLine)
	}
	if !bytes.Contains(line, f.marker) {
		return e, false, nil
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return e, false, err
	}
	if e.Time.Before(f.since) || f.only != "" && e.Type != f.only {
		return e, false, nil
	}
	if e.Time.After(f.latest) {
		f.latest = e.Time
	}
	return e, true, nil
}

// open opens the oldest file that has something from the time on; nothing when
// there is no trail yet. A file that got shorter was repaired: its end is read from.
func (f *Follower) open() error {
	if f.file != nil {
		info, err := f.file.Stat()
		if err == nil && info.Size() < f.offset {
			f.offset, f.midLine = info.Size(), false
		}
		return err
	}
	files, err := f.files()
	if err != nil {
		return err
	}
	for _, path := range files {
		info, err := os.Stat(path)
		if path == f.path || err == nil && !info.ModTime().Before(f.since) {
			return f.use(path)
		}
	}
	return nil
}

// use reads from the beginning of a file from now on.
func (f *Follower) use(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var damage error
	if err == nil && strings.HasSuffix(path, compressed) {
		file, damage, err = decompress(file)
	}
	if err != nil {
		return fmt.Errorf("opening the audit trail: %w", err)
	}
	f.Close()
	f.file, f.name = file, strings.TrimSuffix(path, compressed)
	f.offset, f.line, f.midLine = 0, 0, false
	if damage != nil {
		return &PartError{Part: path, Err: damage}
	}
	return nil
}

// decompress puts what is in a compressed file into one that nobody else sees. damage
// is why that isn't all of it.
func decompress(from *os.File) (_ *os.File, damage, err error) {
	defer func() { _ = from.Close() }()                               // it was only read
	to, err := os.CreateTemp(filepath.Dir(from.Name()), ".unpacked-") // there is room for the trail, and nowhere else may be
	if err != nil {
		return nil, nil, err
	}
	if err := os.Remove(to.Name()); err != nil { // it lives for as long as it is open
		return nil, nil, errors.Join(err, to.Close())
	}
	z, err := gzip.NewReader(from)
	if err == nil {
		_, err = io.Copy(to, z) //nolint:gosec // G110: our own trail, as long as its rotation makes it
	}
	if isDamage(err) {
		if _, err := to.WriteString("\n"); err != nil { // nothing comes after the line that is cut
			return nil, nil, errors.Join(err, to.Close())
		}
		return to, err, nil
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", from.Name(), err), to.Close())
	}
	return to, nil, nil
}

// isDamage reports whether an error says that what is compressed isn't whole.
func isDamage(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.As(err, &corrupt)
}

// next goes to the file that follows the one being read, if that was rotated.
func (f *Follower) next() (bool, error) {
	current, err := f.file.Stat()
	if err != nil {
		return false, fmt.Errorf("reading the audit trail: %w", err)
	}
	live, err := os.Stat(f.path)
	if err != nil || os.SameFile(current, live) { // not there: it is being rotated
		return false, nil //nolint:nilerr // the next Unread finds it
	}
	if current.Size() > f.offset {
		return false, nil // it grew before it was rotated
	}
	files, err := f.files()
	if err != nil {
		return false, err
	}
	for i, path := range files {
		info, err := os.Stat(path)
		if i+1 < len(files) && (strings.TrimSuffix(path, compressed) == f.name || err == nil && os.SameFile(info, current)) {
			return true, f.use(files[i+1])
		}
	}
	// It was removed or compressed before its new name was seen, and more may have
	// been since: what is found again is yielded again.
	f.Close()
	if since := f.latest.Add(-overlap); since.After(f.since) {
		f.since = since
	}
	return true, f.open()
}

// Begun is the file that shows that the trail at path has records, or "" where
// nothing does.
func Begun(path string) string {
	all, err := (&Follower{path: path}).files()
	if err != nil {
		return "" // no folder, no records
	}
	for _, file := range all {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			return file
		}
	}
	return ""
}

// files are the parts of the trail, the oldest first: rotated ones have the time
// of their rotation in the name.
func (f *Follower) files() ([]string, error) {
	dir, base := filepath.Split(f.path)
	extension := filepath.Ext(base)
	prefix := strings.TrimSuffix(base, extension) + "-"
	entries, err := os.ReadDir(filepath.Clean(dir + "."))
	if err != nil {
		return nil, fmt.Errorf("reading the audit trail's folder: %w", err)
	}
	var rotated []string
	for _, e := range entries {
		// While a file is compressed both are there, in this order.
		whole := strings.TrimSuffix(e.Name(), compressed)
		if !strings.HasPrefix(whole, prefix) || !strings.HasSuffix(whole, extension) ||
			len(rotated) > 0 && rotated[len(rotated)-1] == filepath.Join(dir, whole) {
			continue
		}
		rotated = append(rotated, filepath.Join(dir, e.Name()))
	}
	slices.Sort(rotated)
	return append(rotated, f.path), nil
}

// Close closes the file that is open; a later Unread begins anew.
func (f *Follower) Close() {
	if f.file != nil {
		_ = f.file.Close() // it was only read
		f.file = nil
	}
}
