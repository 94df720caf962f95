package strict

import (
	"bytes"
	"encoding/json"
	"fmt"
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
// empty folder leaves them as they are.
func Encode(v, defaults any, folder string) (*yaml.Node, error) {
	e := encoder{folder}
	if folder != "" {
		var err error
		if e.folder, err = filepath.Abs(folder); err != nil {
			return nil, err
		}
	}
	return e.node(reflect.ValueOf(v), reflect.ValueOf(defaults))
}

type encoder struct{ folder string } // absolute, or empty

func (e encoder) node(v, defaults reflect.Value) (*yaml.Node, error) {
	switch {
	case v.Kind() == reflect.Pointer:
		return e.node(v.Elem(), reflect.Zero(v.Type().Elem()))
	case v.Kind() == reflect.Struct && v.Type() != TimeType:
		return e.section(v, defaults)
	case v.Kind() == reflect.Slice:
		return e.list(v)
	case v.Kind() == reflect.Map:
		return e.entries(v)
	}
	var n yaml.Node
	value := v.Interface()
	switch x := value.(type) {
	case time.Duration:
		value = x.String()
	case setting.Path, setting.KeyRef:
		text, err := e.unresolved(v.Type(), v.String())
		if err != nil {
			return nil, err
		}
		value = text
	}
	return &n, n.Encode(value)
}

// section encodes a struct.
func (e encoder) section(v, defaults reflect.Value) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	usual := maps.Collect(Fields(defaults))
	for name, field := range Fields(v) {
		if reflect.DeepEqual(field.Interface(), usual[name].Interface()) {
			continue
		}
		if err := e.add(n, name, field, usual[name]); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (e encoder) add(n *yaml.Node, name string, v, defaults reflect.Value) error {
	value, err := e.node(v, defaults)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name}, value)
	return nil
}

func (e encoder) list(v reflect.Value) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	defaults := reflect.New(v.Type().Elem()).Elem()
	setDefaults(defaults)
	for i := range v.Len() {
		entry, err := e.node(v.Index(i), defaults)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		n.Content = append(n.Content, entry)
	}
	return n, nil
}

func (e encoder) entries(v reflect.Value) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range keys {
		if err := e.add(n, key.String(), v.MapIndex(key), reflect.Zero(v.Type().Elem())); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// unresolved is the text that [Document.resolve] reads as the path or key given.
func (e encoder) unresolved(t reflect.Type, text string) (string, error) {
	path, scheme := text, ""
	if rest, isFile := strings.CutPrefix(text, "file:"); t == keyRefType {
		if !isFile {
			return text, nil
		}
		path, scheme = rest, "file:"
	}
	if path == "" || e.folder == "" {
		return text, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(e.folder, path); err == nil && filepath.IsLocal(rel) {
		path = rel
	}
	return scheme + path, nil
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
