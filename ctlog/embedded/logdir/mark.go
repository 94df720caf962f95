package logdir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// The mark is a file of two slots that are written in turn: whatever happens to
// one write, the other slot still holds the mark before it. A slot is a head of text
// and, behind it, the entries that the log grew by.
const (
	markHead   = 512
	markSlot   = MaxFlush + 4096
	markHeader = "mayfly log mark v2"
	markNote   = "# A mayfly without a write-ahead file can't read this mark, and can't open the log."

	// What earlier versions wrote: two slots of 512 bytes, without entries.
	oldMarkSlot   = 512
	oldMarkHeader = "mayfly log mark v1"
)

// MaxFlush is the most bytes of entries that become durable together.
const MaxFlush = 512 << 10

// High is what a mark says: the largest tree of which an SCT may have been released.
type High struct {
	checkpoint.Tree
	// Entries are those that made the tree so large, from First on, each as a data tile
	// has it, or none. File and mark are written at the same time, so either may lack
	// them after a crash; the other has them.
	First   uint64
	Entries []byte
}

// Mark is an open high-water mark. It lives outside the log's directory, so that an
// older copy of the directory is noticed.
type Mark struct {
	file *durable.Direct
	id   [32]byte
	next int  // the slot to write
	old  bool // an earlier version's slots are there, and are written over next
}

// encodeMark makes the head of a slot: readable lines with a checksum of those before it,
// and a note for people, filled up with new lines.
func encodeMark(id [32]byte, h High) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%x\n%d\n%s\n%d\n%d\n%x\n", markHeader, id, h.Size, base64.StdEncoding.EncodeToString(h.Root),
		h.First, len(h.Entries), sha256.Sum256(h.Entries))
	sum := sha256.Sum256(b.Bytes())
	fmt.Fprintf(&b, "%x\n%s\n", sum, markNote)
	b.Write(bytes.Repeat([]byte("\n"), markHead-b.Len()))
	return b.Bytes()
}

// parseMark reads one slot, as much of it as there is. old says that an earlier version
// wrote it.
func parseMark(slot []byte) (id [32]byte, h High, old bool, err error) {
	head, _, _ := bytes.Cut(slot[:min(len(slot), markHead)], []byte("\n\n"))
	lines := strings.Split(strings.TrimRight(string(head), "\n"), "\n")
	body := map[string]int{markHeader: 7, oldMarkHeader: 4}[lines[0]] // lines below the checksum
	switch {
	case body == 0 && strings.HasPrefix(lines[0], "mayfly log mark "):
		return id, h, false, errors.New("another version of mayfly wrote it: use that one")
	case body == 0 || len(lines) <= body:
		return id, h, false, errors.New("not a mark")
	}
	sum := sha256.Sum256([]byte(strings.Join(lines[:body], "\n") + "\n"))
	if lines[body] != hex.EncodeToString(sum[:]) {
		return id, h, false, errors.New("the checksum is wrong")
	}
	raw, err := hex.DecodeString(lines[1])
	if err != nil || len(raw) != len(id) {
		return id, h, false, errors.New("the log id is malformed")
	}
	copy(id[:], raw)
	if h.Size, err = strconv.ParseUint(lines[2], 10, 64); err != nil {
		return id, h, false, errors.New("the size is malformed")
	}
	if h.Root, err = base64.StdEncoding.DecodeString(lines[3]); err != nil || len(h.Root) != sha256.Size {
		return id, h, false, errors.New("the root is malformed")
	}
	if lines[0] == oldMarkHeader {
		return id, h, true, nil
	}
	length, err := strconv.Atoi(lines[5])
	if err != nil || length < 0 || length > MaxFlush || len(slot) < markHead+length {
		return id, h, false, errors.New("its entries are cut short")
	}
	h.Entries = slot[markHead : markHead+length : markHead+length]
	if h.First, err = strconv.ParseUint(lines[4], 10, 64); err != nil || fmt.Sprintf("%x", sha256.Sum256(h.Entries)) != lines[6] {
		return id, h, false, errors.New("its entries are damaged")
	}
	return id, h, false, nil
}

// CreateMark makes the file of a log, durable when it returns. It never
// overwrites one.
func CreateMark(path string, id [32]byte, t checkpoint.Tree) error {
	if err := durable.MakeFolder(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the folder of the mark: %w", err)
	}
	if err := durable.WriteNew(path, encodeMark(id, High{Tree: t}), 0o600); err != nil {
		return fmt.Errorf("creating the mark: %w", err)
	}
	return nil
}

// ReadMark reads the mark of the log with the id, also while the log is open.
// os.ErrNotExist when there is none.
func ReadMark(path string, id [32]byte) (High, error) {
	file, err := os.Open(path)
	if err != nil {
		return High{}, fmt.Errorf("opening the log's high-water mark: %w", err)
	}
	m := Mark{id: id}
	latest, err := m.latest(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return High{}, fmt.Errorf("the log's high-water mark %s: %w", path, err)
	}
	return latest, nil
}

// TakeMark opens the mark of the log with the id for writing, alone: of two
// copies of a log, each locked in its own directory, only one can have the mark.
// It tries for as long as wait. os.ErrNotExist when there is none.
func TakeMark(ctx context.Context, path string, id [32]byte, wait time.Duration) (*Mark, High, error) {
	file, err := durable.OpenDirect(path, os.O_RDWR, 0, markSlot)
	if err != nil {
		return nil, High{}, fmt.Errorf("opening the log's high-water mark: %w", err)
	}
	m := &Mark{file: file, id: id}
	err = untilFree(ctx, path, wait, func() error { return filelock.Take(file.File) })
	var latest High
	if err == nil {
		latest, err = m.latest(file)
	}
	if err != nil {
		return nil, High{}, fmt.Errorf("the log's high-water mark %s: %w", path, errors.Join(err, file.Close()))
	}
	return m, latest, nil
}

// latest is the greatest of the readable slots; the other one is written next.
func (m *Mark) latest(file io.ReaderAt) (High, error) {
	var (
		best     High
		found    bool
		failures []error
	)
	for _, at := range []int64{0, markSlot, oldMarkSlot} {
		slot := make([]byte, markHead+MaxFlush)
		n, err := file.ReadAt(slot, at)
		if err != nil && !errors.Is(err, io.EOF) {
			failures = append(failures, fmt.Errorf("at byte %d: %w", at, err))
			continue
		}
		id, h, old, err := parseMark(slot[:n])
		if err != nil {
			failures = append(failures, fmt.Errorf("at byte %d: %w", at, err))
			continue
		}
		if id != m.id {
			return High{}, errors.New("it belongs to another log")
		}
		m.old = m.old || old
		if !found || h.Size > best.Size {
			best, found, m.next = h, true, 1
			if at == markSlot {
				m.next = 0
			}
		}
	}
	if !found {
		return High{}, fmt.Errorf("damaged, nothing in it can be read: %w", errors.Join(failures...))
	}
	return best, nil
}

// Advance writes a new mark, durable when it returns. After an error it may be there or
// not: then the same has to be written again.
func (m *Mark) Advance(h High) error {
	parts := [][]byte{encodeMark(m.id, h), h.Entries}
	if m.old { // both of whose slots go
		parts = append(parts, make([]byte, oldMarkSlot))
	}
	for again := true; again; m.next = 1 - m.next {
		if err := m.file.Put(int64(m.next*markSlot), parts...); err != nil {
			return fmt.Errorf("writing the log's high-water mark: %w", err)
		}
		// Over an earlier version's slots only once the new one is whole behind them.
		again, m.old = m.old, false
	}
	return nil
}

// Close gives up the file and its lock.
func (m *Mark) Close() error { return m.file.Close() }

// ErrLocked means that another process, or this one, has the log open.
var ErrLocked = errors.New("the log's directory is in use by another process; only one may write to a log")

// Lock is an exclusive lock on a log's directory. It excludes a second opener in
// this process too.
type Lock struct {
	file *os.File
	path string
}

// Lock takes the lock of the directory, trying for as long as wait. The error is
// ErrLocked where the lock is held to the end.
func (d Dir) Lock(ctx context.Context, wait time.Duration) (l *Lock, err error) {
	err = untilFree(ctx, string(d), wait, func() (err error) {
		l, err = tryLock(d.Path(lockName))
		return err
	})
	return l, err
}

// InUse reports whether somebody has the log open.
func (d Dir) InUse() (bool, error) { return filelock.Held(d.Path(lockName)) }

// untilFree tries a lock for as long as wait. what names it in the error, which is
// ErrLocked where the lock is held to the end.
func untilFree(ctx context.Context, what string, wait time.Duration, try func() error) error {
	err := filelock.Retry(ctx, wait, try)
	if errors.Is(err, filelock.ErrHeld) {
		return fmt.Errorf("%s: %w", what, ErrLocked)
	}
	return err
}

func tryLock(path string) (*Lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log's lock: %w", err)
	}
	l := &Lock{file: file, path: path}
	if err = filelock.Take(file); err == nil {
		err = durable.OwnerOfFolder(file)
	}
	if err == nil {
		if err = l.Held(); err == nil {
			return l, nil
		}
		err = filelock.ErrHeld // the file was replaced between open and lock
	}
	return nil, errors.Join(err, file.Close())
}

// Held is an error when the file was removed or replaced, so that another
// process could have locked the new one.
func (l *Lock) Held() error {
	ours, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("checking the log's lock: %w", err)
	}
	named, err := os.Stat(l.path)
	if err != nil {
		return fmt.Errorf("checking the log's lock: %w", err)
	}
	if !os.SameFile(ours, named) {
		return errors.New("the log's lock file was replaced while the log was open")
	}
	return nil
}

// Release lets others take the lock.
func (l *Lock) Release() error { return l.file.Close() }
