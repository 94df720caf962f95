package inclusion

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// chunk is how much of the trail is read at once. No line is nearly as long.
const chunk = 1 << 20

// issuedType marks the records that carry promises.
const issuedType = "dev.mayfly.certificate.issued"

// compressed is what a compressed file's name ends with.
const compressed = ".gz"

// trail reads the audit trail from a time on, and goes on reading as it grows,
// rotates and is compressed.
type trail struct {
	path   string
	name   string // of the file that is read, as it is called uncompressed
	since  time.Time
	file   *os.File
	offset int64
	latest time.Time
}

// record is what the monitor reads of a line of the trail.
type record struct {
	Type string    `json:"type"`
	Time time.Time `json:"time"`
	Data struct {
		Serial string `json:"serial"`
		recordSCT
		Further []recordSCT `json:"further_scts"`
	} `json:"data"`
}

// recordSCT is what a record says of one SCT.
type recordSCT struct {
	LogID        string    `json:"log_id"`
	LeafHash     string    `json:"leaf_hash"`
	LogIndex     *uint64   `json:"log_index"`
	SCTTimestamp time.Time `json:"sct_timestamp"`
}

// read yields at least the promises of the lines that are there, or those of the
// first lines that have more than limit, and returns the time of the last record read.
func (t *trail) read(limit int, yield func(log [32]byte, p promise)) (time.Time, error) {
	if err := t.open(); err != nil {
		return t.latest, err
	}
	buffer := make([]byte, chunk)
	for count := 0; count < limit && t.file != nil; {
		n, err := t.file.ReadAt(buffer, t.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return t.latest, fmt.Errorf("inclusion: reading the audit trail: %w", err)
		}
		end := bytes.LastIndexByte(buffer[:n], '\n') + 1
		if end == 0 { // nothing more, or a line that is being written
			moved, err := t.next()
			if err != nil || !moved {
				return t.latest, err
			}
			continue
		}
		t.offset += int64(end)
		for line := range bytes.Lines(buffer[:end]) {
			count += t.parse(line, yield)
		}
	}
	return t.latest, nil
}

// parse yields the promises of a line, and returns how many: none when it has
// none, or is from before the time that the trail is read from.
func (t *trail) parse(line []byte, yield func(log [32]byte, p promise)) (count int) {
	if !bytes.Contains(line, []byte(issuedType)) {
		return 0
	}
	var r record
	if json.Unmarshal(line, &r) != nil || r.Type != issuedType || r.Time.Before(t.since) {
		return 0
	}
	if r.Time.After(t.latest) {
		t.latest = r.Time
	}
	for _, sct := range append([]recordSCT{r.Data.recordSCT}, r.Data.Further...) {
		log, err := hex.DecodeString(sct.LogID)
		leaf, err2 := hex.DecodeString(sct.LeafHash)
		if err != nil || err2 != nil || len(log) != 32 || len(leaf) != 32 {
			continue // not logged, or recorded before leaf hashes were
		}
		yield([32]byte(log), promise{
			serial: r.Data.Serial, leaf: [32]byte(leaf), index: sct.LogIndex, promised: sct.SCTTimestamp, recorded: r.Time,
		})
		count++
	}
	return count
}

// open opens the oldest file that has something from the time on; nothing when
// there is no trail yet. A file that got shorter was repaired: its end is read from.
func (t *trail) open() error {
	if t.file != nil {
		info, err := t.file.Stat()
		if err == nil && info.Size() < t.offset {
			t.offset = info.Size()
		}
		return err
	}
	files, err := t.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if f == t.path || err == nil && !info.ModTime().Before(t.since) {
			return t.use(f)
		}
	}
	return nil
}

// use reads from the beginning of a file from now on.
func (t *trail) use(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && strings.HasSuffix(path, compressed) {
		f, err = unpack(f)
	}
	if err != nil {
		return fmt.Errorf("inclusion: opening the audit trail: %w", err)
	}
	t.close()
	t.file, t.offset, t.name = f, 0, strings.TrimSuffix(path, compressed)
	return nil
}

// unpack puts what is in a compressed file into one that nobody else sees.
func unpack(from *os.File) (_ *os.File, err error) {
	defer func() { _ = from.Close() }() // it was only read
	z, err := gzip.NewReader(from)
	if err != nil {
		return nil, err
	}
	to, err := os.CreateTemp(filepath.Dir(from.Name()), ".unpacked-") // there is room for the trail, and nowhere else may be
	if err != nil {
		return nil, err
	}
	err = os.Remove(to.Name()) // it lives for as long as it is open
	if err == nil {
		_, err = io.Copy(to, z) //nolint:gosec // G110: our own trail, as long as its rotation makes it
	}
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

// next goes to the file that follows the one being read, if that was rotated.
func (t *trail) next() (bool, error) {
	current, err := t.file.Stat()
	if err != nil {
		return false, fmt.Errorf("inclusion: reading the audit trail: %w", err)
	}
	live, err := os.Stat(t.path)
	if err != nil || os.SameFile(current, live) { // not there: it is being rotated
		return false, nil //nolint:nilerr // the next look finds it
	}
	if current.Size() > t.offset {
		return false, nil // it grew before it was rotated
	}
	files, err := t.files()
	if err != nil {
		return false, err
	}
	for i, f := range files {
		info, err := os.Stat(f)
		if i+1 < len(files) && (strings.TrimSuffix(f, compressed) == t.name || err == nil && os.SameFile(info, current)) {
			return true, t.use(files[i+1])
		}
	}
	// It was removed or compressed before its new name was seen, and more may have been
	// since. What is found twice is asked for twice, and nothing is left out.
	t.close()
	if since := t.latest.Add(-overlap); since.After(t.since) {
		t.since = since
	}
	return true, t.open()
}

// files are the parts of the trail, the oldest first: rotated ones have the time
// of their rotation in the name.
func (t *trail) files() ([]string, error) {
	dir, base := filepath.Split(t.path)
	extension := filepath.Ext(base)
	prefix := strings.TrimSuffix(base, extension) + "-"
	entries, err := os.ReadDir(filepath.Clean(dir + "."))
	if err != nil {
		return nil, fmt.Errorf("inclusion: reading the audit trail's folder: %w", err)
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
	return append(rotated, t.path), nil
}

func (t *trail) close() {
	if t.file != nil {
		_ = t.file.Close() // it was only read
		t.file = nil
	}
}

// place tells how far the trail was read: it stays the same when nothing is left.
func (t *trail) place() string {
	if t.file == nil {
		return ""
	}
	return fmt.Sprint(t.file.Name(), "\n", t.offset)
}
