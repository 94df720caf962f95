// Package strict reads documents into structs with yaml tags, and writes them:
// YAML, and JSON as the part of YAML that it is. An unknown field, a duplicate key
// or a value of another kind is a fault with its path and line, and all faults are
// reported at once. Relative paths of the type [setting.Path], and those of a
// [setting.KeyRef], begin at the folder that the caller names.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxBytes is the largest document that is read.
const MaxBytes = 1 << 20

// Document is a document that was read, with what is wrong with it.
type Document struct {
	// Faults are in the order in which they were found.
	Faults []Fault

	folder string         // relative paths begin here
	lines  map[string]int // where each path of the document is
}

// Decode reads the document in data into the struct that into points to, over the
// defaults that it holds. An empty folder leaves relative paths as they are. It is
// false where the document is no mapping at all: into has the defaults then.
func Decode(data []byte, folder string, into any) (*Document, bool) {
	d := &Document{folder: folder, lines: map[string]int{}}
	root := d.document(data)
	if root == nil {
		return d, false
	}
	d.value("", root, reflect.ValueOf(into).Elem())
	return d, root.Kind == yaml.MappingNode
}

// Add adds a fault at path. The line is that of the path where it is 0.
func (d *Document) Add(path string, line int, format string, args ...any) {
	if line == 0 {
		line = d.Line(path)
	}
	d.Faults = append(d.Faults, Fault{Path: path, Line: line, Text: fmt.Sprintf(format, args...)})
}

// document gives the root mapping of the one YAML document in data, or nil after a fault.
func (d *Document) document(data []byte) *yaml.Node {
	switch {
	case len(data) > MaxBytes:
		d.Add("", 0, "the file is larger than %d KiB; a configuration is much smaller", MaxBytes>>10)
		return nil
	case !utf8.Valid(data):
		d.Add("", 1+bytes.Count(data[:bytes.IndexRune(data, utf8.RuneError)], []byte("\n")), "the file isn't UTF-8 text")
		return nil
	}
	y := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := y.Decode(&doc)
	if err != nil && !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil
	}
	if err != nil || doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].ShortTag() == "!!null" {
		d.Add("", 0, "the file is empty; see mayfly.example.yaml for what it can hold")
		return nil
	}
	var more yaml.Node
	switch err := y.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(err)
	default:
		d.Add("", more.Line, "a second document begins here; the file must hold one")
	}
	return doc.Content[0]
}

// syntaxLine is how the YAML library begins the text of a syntax error.
var syntaxLine = regexp.MustCompile(`^yaml: line ([0-9]+): `)

func (d *Document) syntax(err error) {
	text, line := err.Error(), 0
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits alone: the pattern says so
		text = text[len(m[0]):]
	}
	d.Add("", line, "isn't YAML: %s", strings.TrimPrefix(text, "yaml: "))
}

// Line is the line of path, or of the nearest thing above it that is in the document.
func (d *Document) Line(path string) int {
	for path != "" {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = parent(path)
	}
	return 0
}

// Faulty reports whether a fault was found at path or above it while decoding:
// what a check says of such a value is only an echo.
func (d *Document) Faulty(path string) bool {
	for ; path != ""; path = parent(path) {
		for _, f := range d.Faults {
			if f.Path == path {
				return true
			}
		}
	}
	return false
}

// parent is the path above: `a.b[2]` after `a.b[2].c`, then `a.b`, `a`, "".
func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// Fault is one thing that is wrong with a document.
type Fault struct {
	// Path is where, as a person would write it: `issuers[3].audiences`. Empty
	// for the document as a whole.
	Path string
	// Line is the line of the file, from 1; 0 when it is unknown.
	Line int
	// Text says what is wrong and what is expected. It holds no secret.
	Text string
}

// String is `path: text (line N)`.
func (f Fault) String() string {
	s := f.Text
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	if f.Line > 0 {
		s += fmt.Sprintf(" (line %d)", f.Line)
	}
	return s
}

// suggest names the known field nearest to an unknown one, or all fields when
// none is near and they are few.
func suggest(name string, known map[string]reflect.Value) string {
	switch near := Nearest(name, slices.Sorted(maps.Keys(known))); {
	case near != "":
		return "; did you mean " + near + "?"
	case len(known) <= 12:
		return "; known are " + listing(known)
	default:
		return ""
	}
}

// Nearest is the known name that a slip or two make into name, or "".
func Nearest(name string, known []string) string {
	near, least := "", 3 // farther than two slips is another word
	for _, candidate := range known {
		d := distance(plain(name), plain(candidate))
		if strings.HasPrefix(candidate, name) && len(name) > 2 {
			d = min(d, 2)
		}
		if d < least {
			near, least = candidate, d
		}
	}
	return near
}

// plain drops what people write in different ways: maxSize, max-size, max_size.
func plain(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

func listing(known map[string]reflect.Value) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b. Long names are far from everything.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int // the one before, the last, this one
	for j := range len(b) + 1 {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			replace := rows[1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[2][j] = min(replace, rows[1][j]+1, rows[2][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[2][j] = min(rows[2][j], rows[0][j-2]+1)
			}
		}
		rows[0], rows[1] = rows[1], rows[2]
	}
	return rows[1][len(b)]
}
