package audit

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

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

// parts are the files of the trail whose current file is at path, the oldest first:
// rotated ones have the time of their rotation in the name.
func parts(path string) ([]string, error) {
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
	file, err := os.Open(path) // #nosec G304 -- the operator names the trail
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
	files, err := parts(path)
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
