package strict

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// maxName bounds what a fault repeats of a strange key, in bytes.
const maxName = 64

// TimeType is a struct that is one value here.
var TimeType = reflect.TypeFor[time.Time]()

// The other types that are decoded in a way of their own.
var (
	durationType = reflect.TypeFor[time.Duration]()
	pathType     = reflect.TypeFor[setting.Path]()
	keyRefType   = reflect.TypeFor[setting.KeyRef]()
	secretType   = reflect.TypeFor[setting.Secret]()
)

// value decodes n into v, which is settable. Of n's own text nothing goes into a
// fault: a value in the wrong place may be a secret.
func (d *Document) value(path string, n *yaml.Node, v reflect.Value) {
	d.lines[path] = n.Line
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.Add(path, n.Line, "anchors and aliases are not supported; write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		d.Add(path, n.Line, "tags are not supported; write the plain value")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		d.Add(path, n.Line, "has no value; give it one or remove the line")
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(path, n, v.Elem())
	case v.Type() == TimeType || v.Kind() != reflect.Struct && v.Kind() != reflect.Slice && v.Kind() != reflect.Map:
		d.scalar(path, n, v)
	case v.Kind() == reflect.Struct:
		d.section(path, n, v)
	case v.Kind() == reflect.Slice:
		d.list(path, n, v)
	default:
		d.entries(path, n, v)
	}
}

// section decodes a mapping into a struct.
func (d *Document) section(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		if v.Type() == secretType {
			d.Add(path, n.Line, "names where the secret is, `{env: VARIABLE}` or `{file: PATH}`; the secret itself is never written here")
			return
		}
		d.Add(path, n.Line, "a mapping is expected (%s), not %s", listing(maps.Collect(Fields(v))), kind(n))
		return
	}
	known := maps.Collect(Fields(v))
	d.each(path, n, func(name, at string, key, value *yaml.Node) {
		field, ok := known[name]
		if !ok {
			d.lines[at] = key.Line
			d.Add(at, key.Line, "unknown field%s", suggest(name, known))
			return
		}
		d.value(at, value, field)
	})
}

// entries decodes a mapping into a map with string keys.
func (d *Document) entries(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.Add(path, n.Line, "a mapping is expected, not %s", kind(n))
		return
	}
	m := reflect.MakeMap(v.Type())
	d.each(path, n, func(name, at string, _, value *yaml.Node) {
		entry := reflect.New(v.Type().Elem()).Elem()
		d.value(at, value, entry)
		m.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), entry)
	})
	v.Set(m)
}

// each calls do for every key of a mapping that is plain text and new.
func (d *Document) each(path string, n *yaml.Node, do func(name, at string, key, value *yaml.Node)) {
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Anchor != "" {
			d.Add(path, key.Line, "a name is expected as the key of each entry, as plain text")
			continue
		}
		at := setting.Join(path, oneline.Clean(key.Value, maxName))
		if line, twice := first[key.Value]; twice {
			d.Add(at, key.Line, "duplicate key; it is on line %d already", line)
			continue
		}
		first[key.Value] = key.Line
		do(key.Value, at, key, value)
	}
}

// list decodes a sequence into a slice, in place of what the default holds.
func (d *Document) list(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.Add(path, n.Line, "a list is expected, not %s", kind(n))
		return
	}
	all := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		setDefaults(all.Index(i))
		d.value(fmt.Sprintf("%s[%d]", path, i), item, all.Index(i))
	}
	v.Set(all)
}

// setDefaults fills in what an entry of a list means without saying it.
func setDefaults(entry reflect.Value) {
	if e, ok := entry.Addr().Interface().(interface{ SetDefaults() }); ok {
		e.SetDefaults()
	}
}

// scalar decodes one plain value.
func (d *Document) scalar(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.ScalarNode && d.set(n, v) {
		return
	}
	got := kind(n)
	if n.Kind == yaml.ScalarNode && v.Kind() == reflect.String {
		got += "; put it in quotes"
	}
	d.Add(path, n.Line, "%s is expected, not %s", wanted(v), got)
}

// set stores n in v, if it is of the right kind, and reports whether it is. What
// isn't stored leaves the default, so that checks don't report a zero on top.
func (d *Document) set(n *yaml.Node, v reflect.Value) (ok bool) {
	tag := n.ShortTag()
	switch {
	case v.Type() == durationType:
		t, err := time.ParseDuration(n.Value)
		return err == nil && tag == "!!str" && store(v.SetInt, int64(t))
	case v.Type() == TimeType:
		t, err := time.Parse(time.RFC3339, n.Value)
		return err == nil && store(v.Set, reflect.ValueOf(t))
	case v.Kind() == reflect.String:
		return tag == "!!str" && store(v.SetString, d.resolve(v.Type(), n.Value))
	case v.Kind() == reflect.Bool:
		return tag == "!!bool" && (n.Value == "true" || n.Value == "false") && store(v.SetBool, n.Value == "true")
	case v.CanInt():
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		return err == nil && tag == "!!int" && store(v.SetInt, i)
	case v.CanUint():
		u, err := strconv.ParseUint(n.Value, 10, v.Type().Bits())
		return err == nil && tag == "!!int" && store(v.SetUint, u)
	case v.CanFloat():
		f, err := strconv.ParseFloat(n.Value, v.Type().Bits())
		return err == nil && (tag == "!!float" || tag == "!!int") && store(v.SetFloat, f)
	default:
		return false
	}
}

// store is set(x) as an expression; it is true.
func store[T any](set func(T), x T) bool {
	set(x)
	return true
}

// resolve makes a relative path relative to the folder of the configuration
// file. Text that isn't a path, such as the URI of a KMS key, stays as it is.
func (d *Document) resolve(t reflect.Type, text string) string {
	const separator = string(filepath.Separator)
	path, isFile := strings.CutPrefix(text, "file:")
	switch {
	case t == keyRefType && isFile:
		return "file:" + d.resolve(pathType, path)
	case t != pathType || text == "" || filepath.IsAbs(text) || d.folder == "":
		return text
	case strings.HasSuffix(text, separator): // Join would hide that a folder is named
		return filepath.Join(d.folder, text) + separator
	}
	return filepath.Join(d.folder, text)
}

// Fields are a struct's fields in their order, by their YAML names; an inlined
// struct gives its own.
func Fields(v reflect.Value) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		for i := range v.NumField() {
			field := v.Type().Field(i)
			name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
			switch {
			case !field.IsExported() || name == "-":
			case slices.Contains(strings.Split(options, ","), "inline"):
				for name, inner := range Fields(v.Field(i)) {
					if !yield(name, inner) {
						return
					}
				}
			case !yield(cmp.Or(name, strings.ToLower(field.Name)), v.Field(i)):
				return
			}
		}
	}
}

// wanted says what a person should write for v.
func wanted(v reflect.Value) string {
	switch {
	case v.Type() == durationType:
		return "a duration with its unit, such as 10m or 1h30m,"
	case v.Type() == TimeType:
		return "a time such as 2027-01-01T00:00:00Z"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.CanUint():
		return "a whole number that isn't negative"
	case v.CanInt():
		return "a whole number"
	case v.CanFloat():
		return "a number"
	default:
		return "text"
	}
}

var kinds = map[string]string{
	"!!map": "a mapping", "!!seq": "a list", "!!int": "this number", "!!float": "this number", "!!bool": "true or false", "!!timestamp": "a date",
}

// kind says what n is.
func kind(n *yaml.Node) string { return cmp.Or(kinds[n.ShortTag()], "this text") }
