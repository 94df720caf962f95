package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// maxFile is the largest state file that is read, in bytes: thousands of authorities.
const maxFile = 1 << 20

// version is that of the state file's form.
const version = 1

// document is the state file.
type document struct {
	Version     int     `json:"version"`
	Authorities []Entry `json:"authorities"`
}

// Parse reads a state file. It takes what Format writes and nothing else, white
// space apart: no member that it doesn't know, none twice, no other order. The
// error continues a sentence that begins with the file's name.
func Parse(b []byte) ([]Entry, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var doc document
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("isn't a state file: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more after the state file's end")
	}
	if doc.Version != version {
		return nil, fmt.Errorf("has version %d; this Mayfly knows %d", doc.Version, version)
	}
	again, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("isn't a state file: %w", err)
	}
	var given bytes.Buffer
	if err := json.Compact(&given, b); err != nil || !bytes.Equal(given.Bytes(), again) {
		return nil, errors.New("isn't as `mayfly authority` writes it: a member is there twice, in another order or in another form; restore it from a copy")
	}
	for i, e := range doc.Authorities {
		if e.Name == "" || Find(doc.Authorities, e.Name) != i {
			return nil, fmt.Errorf("has the authority %q twice, or one without a name", e.Name)
		}
	}
	return doc.Authorities, nil
}

// Format is the text of a state file.
func Format(all []Entry) ([]byte, error) {
	if all == nil {
		all = []Entry{}
	}
	b, err := json.MarshalIndent(document{version, all}, "", "  ")
	return append(b, '\n'), err
}

// Read reads the state file at path. A missing one wraps os.ErrNotExist.
func Read(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	all, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return all, nil
}

// Write puts all into the state file at path: whole, and on disk when it returns.
func Write(path string, all []Entry) error {
	b, err := Format(all)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return durable.WriteNew(path, b, 0o600)
	}
	return durable.Replace(path, b)
}
