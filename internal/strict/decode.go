package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxBytes is the largest configuration that is read.
const maxBytes = 1 << 20

// decoder fills a Go value from a YAML document and collects every fault on the way.
type decoder struct {
	folder string         // relative paths begin here
	lines  map[string]int // where each path of the document is
	faults []Fault
}

func (d *decoder) fault(path string, line int, format string, args ...any) {
	d.faults = append(d.faults, Fault{Path: path, Line: line, Text: fmt.Sprintf(format, args...)})
}

// document gives the root mapping of the one YAML document in data, or nil after a fault.
func (d *decoder) document(data []byte) *yaml.Node {
	switch {
	case len(data) > maxBytes:
		d.fault("", 0, "the file is larger than %d KiB; a configuration is much smaller", maxBytes>>10)
		return nil
	case !utf8.Valid(data):
		d.fault("", 1+bytes.Count(data[:invalidAt(data)], []byte("\n")), "the file isn't UTF-8 text")
		return nil
	}
	y := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := y.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.fault("", 0, "the file is empty; see mayfly.example.yaml for what it can hold")
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	var more yaml.Node
	switch err := y.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(err)
	default:
		d.fault("", more.Line, "a second document begins here; the file must hold one")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		d.fault("", 0, "the file is empty; see mayfly.example.yaml for what it can hold")
		return nil
	}
	return root
}

func invalidAt(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(data)
}

// syntaxLine is how the YAML library begins the text of a syntax error.
var syntaxLine = regexp.MustCompile(`^yaml: line ([0-9]+): `)

func (d *decoder) syntax(err error) {
	text, line := err.Error(), 0
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits alone: the pattern says so
		text = text[len(m[0]):]
	}
	d.fault("", line, "isn't YAML: %s", strings.TrimPrefix(text, "yaml: "))
}

// line is the line of path, or of the nearest thing above it that is in the document.
func (d *decoder) line(path string) int {
	for path != "" {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = parent(path)
	}
	return 0
}

// faulty reports whether a fault was found at path or above it while decoding:
// what a check says of such a value is only an echo.
func (d *decoder) faulty(path string) bool {
	for ; path != ""; path = parent(path) {
		for _, f := range d.faults {
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
