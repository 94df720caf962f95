package main

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const head = `# Configuration

<!-- Written by "go generate ./config" from the configuration structs. Change their doc comments, not this page. -->

` + "`mayfly serve --config FILE`" + ` reads one YAML file. It is strict: an unknown field, a
duplicate key or a value of the wrong kind is a fault, and ` + "`mayfly check --config FILE`" + ` lists
every fault at once with its path and line. Anchors, aliases and tags are refused, and nothing is
filled in from the environment.

- A **path** that is relative begins at the folder of the configuration file.
- A **key** is ` + "`file:PATH`" + `, the private key in a PEM or DER file, or a key in a KMS as the
  vendor's console shows it.
- A **secret** says where it is: ` + "`{env: VARIABLE}` or `{file: PATH}`" + `, never the secret itself.
  Nobody beyond its owner and the groups of the process may use a file that holds a secret or
  a key ([hosts.md](hosts.md#secret-files)).
- A **duration** has its unit: ` + "`500ms`, `10s`, `24h`" + `.

Complete examples: [deploy/mayfly.minimal.yaml](../deploy/mayfly.minimal.yaml) and
[deploy/mayfly.example.yaml](../deploy/mayfly.example.yaml).
`

// section is one struct of the configuration, with the path to it.
type section struct {
	path     string
	value    reflect.Value
	defaults bool // value holds the defaults of a file that leaves the section out
}

// render makes the page from the source tree at root.
func render(root string) ([]byte, error) {
	known := &comments{root: root, packages: map[string]map[string]string{}}
	var page bytes.Buffer
	page.WriteString(head)
	rest := []section{{"", reflect.ValueOf(*config.Default()), true}}
	for len(rest) > 0 {
		subsections, err := table(&page, known, rest[0])
		if err != nil {
			return nil, err
		}
		rest = append(subsections, rest[1:]...) // depth first: a section is followed by its own
	}
	return page.Bytes(), nil
}

// table writes the options of one section and gives its subsections.
func table(page *bytes.Buffer, known *comments, s section) ([]section, error) {
	if s.path == "" {
		page.WriteString("\n| section | |\n|---|---|\n")
	} else {
		fmt.Fprintf(page, "\n## `%s`\n\n| option | kind | default | |\n|---|---|---|---|\n", s.path)
	}
	return rows(page, known, s)
}

// rows writes the options of a struct; those of an inlined one are its own.
func rows(page *bytes.Buffer, known *comments, s section) ([]section, error) {
	var subsections []section
	for i := range s.value.NumField() {
		field := s.value.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if !field.IsExported() || name == "-" {
			continue
		}
		if options == "inline" {
			inner, err := rows(page, known, section{s.path, s.value.Field(i), s.defaults})
			if err != nil {
				return nil, err
			}
			subsections = append(subsections, inner...)
			continue
		}
		text, err := known.of(s.value.Type(), field.Name)
		if err != nil {
			return nil, err
		}
		if rest, ok := strings.CutPrefix(text, field.Name); ok {
			text = "`" + name + "`" + rest // as Go's style begins a field's comment
		}
		text = strings.ReplaceAll(text, "|", "\\|")
		at := strings.TrimPrefix(s.path+"."+name, ".")
		label := "`" + name + "`"
		inner, suffix, nested := structOf(s.value.Field(i))
		if nested {
			label = fmt.Sprintf("[`%s`](#%s)", name, anchor(at+suffix))
			subsections = append(subsections, section{at + suffix, inner, s.defaults && field.Type.Kind() == reflect.Struct})
		}
		if s.path == "" {
			fmt.Fprintf(page, "| %s | %s |\n", label, text)
			continue
		}
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", label, kind(field.Type), value(s, i, nested), text)
	}
	return subsections, nil
}

// structOf is the struct that a field holds, directly or as the element of a
// list, a map or a pointer, and what the path gets for that.
func structOf(v reflect.Value) (inner reflect.Value, suffix string, nested bool) {
	t := v.Type()
	for {
		switch t.Kind() {
		case reflect.Pointer:
			t = t.Elem()
			continue
		case reflect.Slice:
			t, suffix = t.Elem(), suffix+"[]"
			continue
		case reflect.Map:
			t, suffix = t.Elem(), suffix+".NAME"
			continue
		}
		break
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[setting.Secret]() {
		return reflect.Value{}, "", false
	}
	if t == v.Type() {
		return v, "", true
	}
	return reflect.New(t).Elem(), suffix, true
}

// kind names what a person writes for a field.
func kind(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[time.Time]():
		return "time"
	case reflect.TypeFor[setting.Path]():
		return "path"
	case reflect.TypeFor[setting.KeyRef]():
		return "key"
	case reflect.TypeFor[setting.Secret]():
		return "secret"
	}
	switch t.Kind() {
	case reflect.Struct:
		return "section"
	case reflect.Pointer:
		return kind(t.Elem())
	case reflect.Slice:
		return "list of " + kind(t.Elem())
	case reflect.Map:
		return "map of " + kind(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	default:
		return "number"
	}
}

// value is the default of a section's field.
func value(s section, i int, nested bool) string {
	v := s.value.Field(i)
	switch {
	case nested || !s.defaults || v.IsZero() && v.Kind() != reflect.Bool && !v.CanInt():
		return "–"
	case v.Kind() == reflect.Slice:
		var items []string
		for _, item := range v.Seq2() {
			items = append(items, fmt.Sprintf("`%v`", item))
		}
		return strings.Join(items, ", ")
	case v.Type() == reflect.TypeFor[time.Duration]():
		return "`" + short(time.Duration(v.Int())) + "`"
	default:
		return fmt.Sprintf("`%v`", v)
	}
}

// short writes 10m for 10m0s and 24h for 24h0m0s.
func short(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"0s", "0m"} {
		if cut, ok := strings.CutSuffix(text, zero); ok && strings.HasSuffix(cut, map[string]string{"0s": "m", "0m": "h"}[zero]) {
			text = cut
		}
	}
	return text
}

// anchor is the fragment that renderers of Markdown give a heading: letters,
// digits, '-' and '_' of its text.
func anchor(path string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(".[]`", r) {
			return -1
		}
		return r
	}, strings.ToLower(path))
}
