package strict

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Encode is the document that [Decode] reads back as the struct v, in the folder
// and over the struct defaults: of every section and entry it has what differs from
// them alone. Paths below the folder become relative to it, others absolute; an
// empty folder leaves them as they are. It fails where the working folder is gone.
func Encode(v, defaults any, folder string) (*yaml.Node, error) {
	e := encoder{folder: folder}
	if folder != "" {
		e.folder = e.absolute(folder)
	}
	return e.node(reflect.ValueOf(v), reflect.ValueOf(defaults)), e.err
}

type encoder struct {
	folder string // absolute, or empty
	err    error  // the first
}

func (e *encoder) absolute(path string) string {
	absolute, err := filepath.Abs(path)
	e.err = cmp.Or(e.err, err)
	return absolute
}

func (e *encoder) node(v, defaults reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	switch {
	case v.Kind() == reflect.Pointer:
		return e.node(v.Elem(), reflect.Zero(v.Type().Elem()))
	case v.Kind() == reflect.Struct && v.Type() != TimeType:
		usual := maps.Collect(Fields(defaults))
		for name, field := range Fields(v) {
			if !reflect.DeepEqual(field.Interface(), usual[name].Interface()) {
				n.Content = append(n.Content, scalar(name), e.node(field, usual[name]))
			}
		}
	case v.Kind() == reflect.Slice:
		n = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		usual := reflect.New(v.Type().Elem()).Elem()
		setDefaults(usual)
		for i := range v.Len() {
			n.Content = append(n.Content, e.node(v.Index(i), usual))
		}
	case v.Kind() == reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			n.Content = append(n.Content, scalar(key.String()), e.node(v.MapIndex(key), reflect.Zero(v.Type().Elem())))
		}
	default:
		return e.scalar(v)
	}
	return n
}

func scalar(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

// scalar encodes one plain value.
func (e *encoder) scalar(v reflect.Value) *yaml.Node {
	switch x := v.Interface().(type) {
	case time.Duration:
		return scalar(x.String())
	case setting.Path:
		return scalar(e.unresolved(v.String()))
	case setting.KeyRef:
		if path, isFile := strings.CutPrefix(v.String(), "file:"); isFile {
			return scalar("file:" + e.unresolved(path))
		}
	}
	var n yaml.Node
	e.err = cmp.Or(e.err, n.Encode(v.Interface()))
	return &n
}

// unresolved is the text that [Document.resolve] reads as the path.
func (e *encoder) unresolved(path string) string {
	if path == "" || e.folder == "" {
		return path
	}
	path = e.absolute(path)
	if rel, err := filepath.Rel(e.folder, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// JSON is a document that Encode made, indented by two spaces.
func JSON(n *yaml.Node) ([]byte, error) {
	var flat, out bytes.Buffer
	writeJSON(&flat, n)
	err := json.Indent(&out, flat.Bytes(), "", "  ")
	return append(out.Bytes(), '\n'), err
}

func writeJSON(b *bytes.Buffer, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!int", "!!float", "!!bool":
			b.WriteString(n.Value)
		default:
			e := json.NewEncoder(b)
			e.SetEscapeHTML(false)
			_ = e.Encode(n.Value) // text always can be written
		}
		return
	}
	brackets := "[]"
	if n.Kind == yaml.MappingNode {
		brackets = "{}"
	}
	b.WriteByte(brackets[0])
	for i, c := range n.Content {
		switch {
		case n.Kind == yaml.MappingNode && i%2 == 1:
			b.WriteByte(':')
		case i > 0:
			b.WriteByte(',')
		}
		writeJSON(b, c)
	}
	b.WriteByte(brackets[1])
}
