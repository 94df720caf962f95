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
	"golang.org/x/sys/unix"
)

// The mark is a file of two slots that are written in turn: whatever happens to
// one write, the other slot still holds the mark before it.
const (
	markSlot   = 512
	markSlots  = 2
	markHeader = "mayfly log mark v1"
)

// Mark is an open high-water mark: the largest tree of which an SCT may have
// been released. It lives outside the log's directory, so that an older copy of
// the directory is noticed.
type Mark struct {
	file *os.File
	id   [32]byte
	next int // the slot to write
}

// encodeMark makes one slot: readable lines, the last a checksum of those
// before, filled up with new lines.
func encodeMark(id [32]byte, t checkpoint.Tree) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%x\n%d\n%s\n", markHeader, id, t.Size, base64.StdEncoding.EncodeToString(t.Root))
	sum := sha256.Sum256(b.Bytes())
	fmt.Fprintf(&b, "%x\n", sum)
	return append(b.Bytes(), bytes.Repeat([]byte("\n"), markSlot-b.Len())...)
}

// parseMark reads one slot.
func parseMark(slot []byte) (id [32]byte, t checkpoint.Tree, err error) {
	lines := strings.Split(string(bytes.TrimRight(slot, "\n")), "\n")
	if len(lines) != 5 || lines[0] != markHeader {
		return id, t, errors.New("not a mark")
	}
	body := strings.Join(lines[:4], "\n") + "\n"
	if sum := sha256.Sum256([]byte(body)); lines[4] != hex.EncodeToString(sum[:]) {
		return id, t, errors.New("the checksum is wrong")
	}
	raw, err := hex.DecodeString(lines[1])
	if err != nil || len(raw) != len(id) {
		return id, t, errors.New("the log id is malformed")
	}
	copy(id[:], raw)
	if t.Size, err = strconv.ParseUint(lines[2], 10, 64); err != nil {
		return id, t, errors.New("the size is malformed")
	}
	if t.Root, err = base64.StdEncoding.DecodeString(lines[3]); err != nil || len(t.Root) != sha256.Size {
		return id, t, errors.New("the root is malformed")
	}
	return id, t, nil
}

// CreateMark makes the file of a log, durable when it returns. It never
// overwrites one.
func CreateMark(path string, id [32]byte, t checkpoint.Tree) error {
	if err := durable.MakeFolder(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the folder of the mark: %w", err)
	}
	if err := durable.WriteNew(path, bytes.Repeat(encodeMark(id, t), markSlots), 0o600); err != nil {
		return fmt.Errorf("creating the mark: %w", err)
	}
	return nil
}

// ReadMark reads the mark of the log with the id, also while the log is open.
// os.ErrNotExist when there is none.
func ReadMark(path string, id [32]byte) (checkpoint.Tree, error) {
	m, latest, err := openMark(path, os.O_RDONLY, id, func(*os.File) error { return nil })
	if err != nil {
		return checkpoint.Tree{}, err
	}
	return latest, m.Close()
}

// TakeMark opens the mark of the log with the id for writing, alone: of two
// copies of a log, each locked in its own directory, only one can have the mark.
// It tries for as long as wait. os.ErrNotExist when there is none.
func TakeMark(ctx context.Context, path string, id [32]byte, wait time.Duration) (*Mark, checkpoint.Tree, error) {
	// O_DSYNC: a write is durable when it returns, without the file's times.
	return openMark(path, os.O_RDWR|unix.O_DSYNC, id, func(file *os.File) error {
		return untilFree(ctx, path, wait, func() error { return filelock.Take(file) })
	})
}

// openMark opens the mark with the flags and reads it once lock has been called.
func openMark(path string, flags int, id [32]byte, lock func(*os.File) error) (*Mark, checkpoint.Tree, error) {
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, checkpoint.Tree{}, fmt.Errorf("opening the log's high-water mark: %w", err)
	}
	m := &Mark{file: file, id: id}
	var latest checkpoint.Tree
	if err = lock(file); err == nil {
		latest, err = m.latest()
	}
	if err != nil {
		return nil, checkpoint.Tree{}, fmt.Errorf("the log's high-water mark %s: %w", path, errors.Join(err, file.Close()))
	}
	return m, latest, nil
}

// latest is the greater of the readable slots; the other one is written next.
func (m *Mark) latest() (checkpoint.Tree, error) {
	var (
		best     checkpoint.Tree
		found    bool
		failures []error
	)
	for i := range markSlots {
		slot := make([]byte, markSlot)
		if _, err := m.file.ReadAt(slot, int64(i*markSlot)); err != nil && !errors.Is(err, io.EOF) {
			failures = append(failures, fmt.Errorf("slot %d: %w", i, err))
			continue
		}
		id, t, err := parseMark(slot)
		if err != nil {
			failures = append(failures, fmt.Errorf("slot %d: %w", i, err))
			continue
		}
		if id != m.id {
			return checkpoint.Tree{}, errors.New("it belongs to another log")
		}
		if !found || t.Size > best.Size {
			best, found, m.next = t, true, (i+1)%markSlots
		}
	}
	if !found {
		return checkpoint.Tree{}, fmt.Errorf("damaged, nothing in it can be read: %w", errors.Join(failures...))
	}
	return best, nil
}

// Advance writes a new mark, durable when it returns.
func (m *Mark) Advance(t checkpoint.Tree) error {
	if _, err := m.file.WriteAt(encodeMark(m.id, t), int64(m.next*markSlot)); err != nil {
		return fmt.Errorf("writing the log's high-water mark: %w", err)
	}
	m.next = (m.next + 1) % markSlots
	return nil
}

// Close gives up the file and its lock.
func (m *Mark) Close() error {
	if err := m.file.Close(); err != nil {
		return fmt.Errorf("closing the log's high-water mark: %w", err)
	}
	return nil
}
