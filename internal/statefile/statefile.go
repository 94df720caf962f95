// Package statefile keeps what commands decide and a running service follows: a
// JSON document in a file of its own, since the configuration is the operator's and
// is never written. The document is a struct with yaml tags that has its version
// first; its members have the names and the forms of the configuration's settings.
// It is written whole, and one command at a time changes it.
package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/filelock"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// MaxBytes is the largest state file that is read: thousands of entries.
const MaxBytes = 1 << 20

// Parse reads a document of a version from 1 to newest into the struct that into
// points to. It takes no member that the struct doesn't have, none twice, and wants
// every list at its top. Relative paths begin at folder. The error continues a
// sentence that begins with the file's name.
func Parse(b []byte, folder string, newest int, into any) error {
	if len(b) > MaxBytes {
		return fmt.Errorf("is larger than %d bytes", MaxBytes)
	}
	var head struct {
		Version int `json:"version"`
	}
	// The version comes first: a newer document has members that aren't known here.
	if err := json.Unmarshal(b, &head); err != nil {
		return fmt.Errorf("isn't a state file: %w", err)
	}
	if head.Version < 1 || head.Version > newest {
		return fmt.Errorf("has version %d; this Mayfly knows those up to %d: a newer one wrote it, or it was damaged", head.Version, newest)
	}
	var text bytes.Buffer
	if err := json.Indent(&text, b, "", "  "); err != nil { // the tabs of JSON aren't YAML's
		return fmt.Errorf("isn't a state file: %w", err)
	}
	d, _ := strict.Decode(text.Bytes(), folder, into)
	for name, member := range strict.Fields(reflect.ValueOf(into).Elem()) {
		if len(d.Faults) == 0 && member.Kind() == reflect.Slice && member.IsNil() {
			d.Add(name, 0, "is missing")
		}
	}
	if len(d.Faults) > 0 {
		all := make([]string, len(d.Faults))
		for i, f := range d.Faults {
			all[i] = f.String()
		}
		return fmt.Errorf("isn't a state file: %s", strings.Join(all, "; "))
	}
	return nil
}

// Format is the text of the document that doc points to, as Parse reads it. Paths
// below the folder are written relative to it.
func Format(doc any, folder string) ([]byte, error) {
	v := reflect.New(reflect.TypeOf(doc).Elem()).Elem()
	v.Set(reflect.ValueOf(doc).Elem())
	for _, member := range strict.Fields(v) {
		if member.Kind() == reflect.Slice && member.IsNil() {
			member.Set(reflect.MakeSlice(member.Type(), 0, 0))
		}
	}
	n, err := strict.Encode(v.Interface(), reflect.Zero(v.Type()).Interface(), folder)
	if err != nil {
		return nil, err
	}
	b, err := strict.JSON(n)
	if err == nil && len(b) > MaxBytes {
		err = fmt.Errorf("the state file would be larger than %d bytes, and nobody would read it", MaxBytes)
	}
	return b, err
}

// Read is Parse of the file at path, whose folder relative paths begin at. A
// missing file wraps os.ErrNotExist.
func Read(path string, newest int, into any) error {
	b, err := durable.ReadPlain(path, MaxBytes)
	if err != nil {
		return err
	}
	if err := Parse(b, filepath.Dir(path), newest, into); err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	return nil
}

// Create writes a file that must not be there yet; the error wraps os.ErrExist then.
func Create(path string, doc any) error {
	b, err := Format(doc, filepath.Dir(path))
	if err != nil {
		return err
	}
	return durable.WriteNew(path, b, 0o600)
}

// File is a state file that this command alone changes until it is closed.
type File struct {
	path string
	lock *os.File // the folder
}

// Open takes the lock of the state files in path's folder. The file itself needn't
// be there. A second command on them is refused.
func Open(path string) (_ *File, err error) {
	if named, err := os.Lstat(path); err == nil && !named.Mode().IsRegular() {
		return nil, fmt.Errorf("%s isn't a plain file: name the file itself, which is written anew in its folder", path)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := filelock.Take(folder); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another command is changing it: %w", path, err), folder.Close())
	}
	return &File{path, folder}, nil
}

// Write puts a document into the file: whole, and on disk when it returns. After an
// error the old one stands, unless only the last sync failed.
func (f *File) Write(doc any) error {
	if _, err := os.Lstat(f.path); errors.Is(err, os.ErrNotExist) {
		return Create(f.path, doc)
	}
	b, err := Format(doc, filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return durable.Replace(f.path, b)
}

// Close gives the lock up.
func (f *File) Close() {
	_ = f.lock.Close() // nothing is written through it
}
