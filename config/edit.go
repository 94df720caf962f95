package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// Change is one change of a configuration file; [Set], [Append] and [Remove] make it.
type Change struct {
	verb  verb
	path  string // as in a fault: `ctlog.shards[1].end`
	value any
}

type verb string

const (
	verbSet    verb = "set"
	verbAppend verb = "add to"
	verbRemove verb = "remove"
)

// Set gives the setting at path a value, in the place of the one that it has. A
// setting that isn't there is added, with the sections above it. Only a plain
// value can be replaced, no list or section. Paths in the value stay as they are:
// relative ones begin at the folder of the file.
func Set(path string, value any) Change { return Change{verbSet, path, value} }

// Append adds a value, such as a struct with yaml tags, to the list at path. A
// list that isn't there is made.
func Append(path string, value any) Change { return Change{verbAppend, path, value} }

// Remove takes the entry at path out of its list or section, with the comments
// inside it; one that it leaves empty goes as well.
func Remove(path string) Change { return Change{verb: verbRemove, path: path} }

// String says the change to a person who makes it by hand.
func (c Change) String() string {
	if c.verb == verbRemove {
		return "remove " + c.path
	}
	text, err := yaml.Marshal(c.value)
	if err != nil {
		return fmt.Sprintf("%s %s: %v", c.verb, c.path, c.value)
	}
	if lines := strings.TrimSuffix(string(text), "\n"); strings.Contains(lines, "\n") {
		return fmt.Sprintf("%s %s:\n    %s", c.verb, c.path, strings.ReplaceAll(lines, "\n", "\n    "))
	}
	return fmt.Sprintf("%s %s: %s", c.verb, c.path, bytes.TrimSpace(text))
}

// EditError is a file that [Edit] left as it was, with what to change in it by hand.
type EditError struct {
	File    string
	Changes []Change
	Err     error
}

// Error is the cause and one indented line or more a change.
func (e *EditError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s was not changed: %v; change it by hand:", e.File, e.Err)
	for _, c := range e.Changes {
		b.WriteString("\n  " + c.String())
	}
	return b.String()
}

func (e *EditError) Unwrap() error { return e.Err }

// Edit makes changes in a configuration file, in their order, all or none, and is
// done when they are on disk. Every byte that isn't part of a change stays:
// comments, order and quoting. What the file says afterwards is proven before it
// is written: it is the old document with the changes and nothing else, and has no
// fault.
//
// The error is an *EditError: the file is a symbolic link (as in a Kubernetes
// volume) or can't be written, it or the result has faults, or the text is of a
// form that only a person can edit. The old file stands then, unless the very last
// step, the sync of the folder, failed.
func Edit(file string, changes ...Change) error { return edit(file, changes, true) }

// TryEdit is Edit without the writing: nil says that nothing in the file speaks
// against the changes.
func TryEdit(file string, changes ...Change) error { return edit(file, changes, false) }

func edit(file string, changes []Change, write bool) (err error) {
	defer func() {
		if err != nil {
			err = &EditError{File: file, Changes: changes, Err: err}
		}
	}()
	f, old, err := openEditable(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // and with it the lock
	next, err := revise(old, filepath.Dir(file), changes)
	if err != nil || !write || bytes.Equal(old, next) {
		return err
	}
	return durable.Replace(file, next)
}

// openEditable opens, locks and reads a file that can be replaced.
func openEditable(file string) (_ *os.File, _ []byte, err error) {
	named, err := os.Lstat(file)
	switch {
	case err != nil:
		return nil, nil, err
	case named.Mode()&os.ModeSymlink != 0:
		return nil, nil, errors.New("it is a symbolic link, so it is kept somewhere else")
	case !named.Mode().IsRegular():
		return nil, nil, errors.New("it isn't a plain file")
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := filelock.Take(f); err != nil {
		return nil, nil, fmt.Errorf("another command is changing it: %w", err)
	}
	// Whoever held the lock before may have put another file in its place.
	opened, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if named, err = os.Lstat(file); err != nil || !os.SameFile(opened, named) {
		return nil, nil, errors.Join(errors.New("it was replaced meanwhile"), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	return f, data, err
}

// revise is the text after the changes, proven to mean just that.
func revise(text []byte, folder string, changes []Change) ([]byte, error) {
	if _, err := Parse(text, folder); err != nil {
		return nil, fmt.Errorf("it has faults already: %w", err)
	}
	next := text
	for _, c := range changes {
		var err error
		if next, err = c.revise(next); err != nil {
			return nil, fmt.Errorf("%s %s: %w", c.verb, c.path, err)
		}
	}
	if _, err := Parse(next, folder); err != nil {
		return nil, fmt.Errorf("the changes would make faults: %w", err)
	}
	return next, nil
}

// errForm is text that means what it should, in a form that isn't edited here.
var errForm = errors.New("the file is written in a form that only a person can edit here")

// revise makes one change in the text and proves that the document differs in it alone.
func (c Change) revise(text []byte) ([]byte, error) {
	steps, err := parsePath(c.path)
	if err != nil {
		return nil, err
	}
	var value yaml.Node
	if c.verb != verbRemove {
		if err := value.Encode(c.value); err != nil {
			return nil, err
		}
	}
	d, err := newDocument(text)
	if err != nil {
		return nil, err
	}
	s, err := d.plan(c.verb, steps, &value)
	if err != nil {
		return nil, err
	}
	next := bytes.Join([][]byte{text[:s.from], []byte(s.text), text[s.to:]}, nil)
	want, err := newDocument(text)
	if err != nil {
		return nil, err
	}
	if err := apply(want.root, c.verb, steps, &value); err != nil {
		return nil, err
	}
	if got, err := newDocument(next); err != nil || !alike(got.root, want.root) {
		return nil, errForm
	}
	return next, nil
}

// apply makes the change in the document itself: what the text has to say afterwards.
func apply(root *yaml.Node, v verb, steps []step, value *yaml.Node) error {
	trail, rest := follow(root, steps)
	n := trail.last()
	switch {
	case v == verbRemove && len(rest) > 0:
		return errNoEntry
	case v == verbRemove:
		at, err := trail.removed()
		if err != nil {
			return err
		}
		from := at.index
		if at.parent.Kind == yaml.MappingNode {
			from-- // the key
		}
		at.parent.Content = append(at.parent.Content[:from:from], at.parent.Content[at.index+1:]...)
	case len(rest) > 0:
		name, added, err := missing(v, rest, value)
		if err != nil {
			return err
		}
		n.Content = append(n.Content, name, added)
	case v == verbAppend:
		n.Content = append(n.Content, value)
	default:
		*n = *value
	}
	return nil
}

// alike reports whether two documents say the same, in whatever style.
func alike(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || tag(a) != tag(b) || a.Value != b.Value || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !alike(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

// tag is a node's, where a time may be written in quotes as well: inside brackets
// the encoder does that, and what a setting is read as is up to its type.
func tag(n *yaml.Node) string {
	if t := n.ShortTag(); t != "!!timestamp" {
		return t
	}
	return "!!str"
}
