package audit

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
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

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// overlap is how far the times of records may be out of their order.
const overlap = time.Minute

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

// Line is a line of the trail, and where it is.
type Line struct {
	Part   string // the file, as it is called uncompressed
	Number int    // from 1
	Text   []byte // without its end; another line's once the next is asked for
}

// Follower reads an audit trail from a time on, and goes on as it grows, rotates
// and is compressed. It isn't safe for concurrent use.
type Follower struct {
	path   string
	since  time.Time
	only   Type
	marker []byte // in every line of that type
	latest time.Time
	part   *part // that is being read; nil before the first
}

// Follow reads the trail whose current file is at path: events of one type (""
// takes all), and none from before since. There need not be a trail yet.
func Follow(path string, since time.Time, only Type) *Follower {
	f := &Follower{path: path, since: since, only: only}
	if only != "" {
		f.marker = []byte(`"` + only.name() + `"`)
	}
	return f
}

// Unread yields the events that are on record and weren't yielded before, as Lines does.
func (f *Follower) Unread() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for line, err := range f.Lines() {
			var e Event
			if err == nil {
				if !bytes.Contains(line.Text, f.marker) {
					continue
				}
				if err = json.Unmarshal(line.Text, &e); err != nil {
					e, err = Event{}, &LineError{Part: line.Part, Line: line.Number, Err: err}
				} else if e.Time.Before(f.since) || f.only != "" && e.Type != f.only {
					continue
				} else if e.Time.After(f.latest) {
					f.latest = e.Time
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Lines yields the lines that weren't yielded before, the oldest file first, whatever
// their type and time. One that can't be read is a *[LineError], after which it goes
// on; any other error ends it, and the next Lines tries again. That goes on from a
// damaged part, too, whose *[PartError] comes once. A line may come
// twice where files were rotated away unseen, but none is left out.
func (f *Follower) Lines() iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		if err := f.open(); err != nil {
			yield(Line{}, err)
			return
		}
		for f.part != nil {
			p := f.part
			text, err := p.read()
			if err == nil || errors.Is(err, errTooLong) {
				if err != nil {
					err = &LineError{Part: p.name, Line: p.line, Err: err}
				}
				if !yield(Line{p.name, p.line, text}, err) {
					return
				}
				continue
			}
			over, told := f.over(p, err)
			if told != nil && !yield(Line{}, told) || !over {
				return
			}
		}
	}
}

// over says what the end of what can be read of a part means, and goes to the next where
// that is there: nothing more for now, a line that is being written, one that never gets
// its end, or damage.
func (f *Follower) over(p *part, end error) (goOn bool, told error) {
	switch {
	case isDamage(end):
		told = &PartError{Part: p.file.Name(), Err: end}
	case errors.Is(end, errCut):
		told = &LineError{Part: p.name, Line: p.line + 1, Err: end}
	case !errors.Is(end, io.EOF):
		return false, fmt.Errorf("reading the audit trail: %w", end)
	}
	current, err := p.rewind()
	if err != nil {
		return false, err
	}
	if !p.packed {
		live, err := os.Stat(f.path)
		if err != nil || os.SameFile(current, live) { // not there: it is being rotated
			return false, nil //nolint:nilerr // the next Lines finds it
		}
		if current.Size() > p.seen {
			return true, nil // it grew before it was rotated
		}
	}
	moved, err := f.next(p, current)
	if err != nil {
		return false, errors.Join(told, err)
	}
	return moved, told
}

// open opens the oldest file that has something from the time on; nothing when
// there is no trail yet. A file that got shorter was repaired: its end is read from.
func (f *Follower) open() error {
	if f.part != nil {
		_, err := f.part.rewind()
		return err
	}
	files, err := Parts(f.path)
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
	p, err := openPart(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the audit trail: %w", err)
	}
	f.Close()
	f.part = p
	return nil
}

// next goes to the file that follows p, which was rotated.
func (f *Follower) next(p *part, current os.FileInfo) (bool, error) {
	files, err := Parts(f.path)
	if err != nil {
		return false, err
	}
	for i, path := range files {
		info, err := os.Stat(path)
		if i+1 < len(files) && (strings.TrimSuffix(path, compressed) == p.name || err == nil && os.SameFile(info, current)) {
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
	all, err := Parts(path)
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

// Position is how far a trail was read: by what the part begins with, which rotation and
// compression leave as it is, and where in it.
type Position struct {
	First  string `json:"first"` // the SHA-256 of the part's first line
	Offset int64  `json:"offset"`
}

// Position is where the next line begins; the zero value before the first.
func (f *Follower) Position() Position {
	if f.part == nil {
		return Position{}
	}
	return Position{f.part.first, f.part.offset}
}

// Resume goes on at a position. Where it isn't found, since that part is gone, reading
// begins with the oldest part that is there.
func (f *Follower) Resume(at Position) (found bool, err error) {
	files, err := Parts(f.path)
	if err != nil {
		return false, err
	}
	defer func() {
		if !found {
			f.Close()
		}
	}()
	for _, path := range files {
		if err := f.use(path); err != nil {
			return false, err
		}
		p := f.part
		if p == nil {
			continue // there is no trail yet
		}
		for p.offset < at.Offset && (p.line == 0 || p.first == at.First) {
			if _, err := p.read(); err != nil && !errors.Is(err, errTooLong) {
				break
			}
		}
		if p.first == at.First && p.first != "" {
			_, err := p.rewind() // where the line at the position isn't whole
			return true, err
		}
	}
	return false, nil
}

// Close closes the file that is open; a later Unread begins anew.
func (f *Follower) Close() {
	if f.part != nil {
		f.part.close()
		f.part = nil
	}
}

// maxLine bounds a line that is read, and so the memory of reading. No line that
// this package writes is nearly as long (maxRecord).
const maxLine = 512 << 10

// compressed is what a compressed file's name ends with.
const compressed = ".gz"

// Why a line can't be read.
var (
	errTooLong = fmt.Errorf("it is longer than %d bytes", maxLine)
	errCut     = errors.New("it is cut off: it has no end")
)

// part is one file of a trail that is read line by line.
type part struct {
	file   *os.File
	lines  *bufio.Reader // of the file, or of what is packed in it
	packed bool
	name   string // as the file is called uncompressed
	offset int64  // of the first line that wasn't read, uncompressed
	seen   int64  // the end of what was read, of a line that isn't whole too
	line   int    // how many lines were read
	long   bool   // offset is inside of a line that is too long
	first  string // the hash of the first line, once it was read
	damage error  // of the beginning of what is packed
}

// Parts are the files of the trail whose current file is at path, the oldest first:
// rotated ones have the time of their rotation in the name. The current one is the last,
// whether or not it is there.
func Parts(path string) ([]string, error) {
	dir, base := filepath.Split(path)
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
	return append(rotated, path), nil
}

func openPart(path string) (*part, error) {
	file, err := durable.OpenPlain(path)
	if err != nil {
		return nil, err
	}
	p := &part{file: file, name: strings.TrimSuffix(path, compressed), packed: strings.HasSuffix(path, compressed)}
	var from io.Reader = file
	if p.packed {
		if from, p.damage = gzip.NewReader(file); p.damage != nil {
			from = file
		}
	}
	p.lines = bufio.NewReaderSize(from, maxLine)
	return p, nil
}

// isDamage reports whether an error says that what is compressed isn't whole.
func isDamage(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &corrupt)
}

// read gives the next line, without its end, until the next read. The error is
// errTooLong, after which it goes on; io.EOF where nothing follows; errCut where what
// follows has no end yet; or why the file can't be read.
func (p *part) read() ([]byte, error) {
	for p.damage == nil {
		text, err := p.lines.ReadSlice('\n')
		switch {
		case err == nil && p.long:
			p.offset, p.line, p.long = p.offset+int64(len(text)), p.line+1, false
			return nil, errTooLong
		case err == nil:
			p.offset, p.line = p.offset+int64(len(text)), p.line+1
			text = text[:len(text)-1]
			if p.line == 1 {
				sum := sha256.Sum256(text)
				p.first = hex.EncodeToString(sum[:])
			}
			return text, nil
		case errors.Is(err, bufio.ErrBufferFull):
			p.offset, p.long = p.offset+int64(len(text)), true
		case errors.Is(err, io.EOF) && (p.long || len(text) > 0):
			p.seen = p.offset + int64(len(text))
			return nil, errCut
		default:
			p.seen = p.offset
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w (%w)", gzip.ErrHeader, p.damage)
}

// rewind goes back to the line that had no end yet, or to the end of a file that got
// shorter, as a repair makes it.
func (p *part) rewind() (os.FileInfo, error) {
	info, err := p.file.Stat()
	if err == nil && !p.packed {
		if info.Size() < p.offset {
			p.offset, p.long = info.Size(), false
		}
		_, err = p.file.Seek(p.offset, io.SeekStart)
		p.lines.Reset(p.file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the audit trail: %w", err)
	}
	return info, nil
}

func (p *part) close() { _ = p.file.Close() } // it was only read

// lastOfParts is the hash of the last line in rotated parts; zero where there is none.
func lastOfParts(path string) (last [sha256.Size]byte, err error) {
	files, err := Parts(path)
	if err != nil {
		return last, err
	}
	for _, file := range slices.Backward(files[:len(files)-1]) {
		p, err := openPart(file)
		if err != nil {
			return last, err
		}
		for err == nil || errors.Is(err, errTooLong) {
			var text []byte
			if text, err = p.read(); err == nil {
				last = sha256.Sum256(text)
			}
		}
		p.close()
		if !errors.Is(err, io.EOF) && !errors.Is(err, errCut) && !isDamage(err) {
			return last, err // a chain would go on from a line that isn't the last
		}
		if p.line > 0 {
			break
		}
	}
	return last, nil
}
