package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

// module is the path that the packages of this module begin with.
const module = "github.com/mayfly-ca/mayfly/"

// comments gives the doc comments of struct fields, parsing each package once.
type comments struct {
	root     string
	packages map[string]map[string]string // package path → "Type.Field" → text
}

// of is the doc comment of a field of struct t, on one line. Every option must have one.
func (c *comments) of(t reflect.Type, field string) (string, error) {
	fields, ok := c.packages[t.PkgPath()]
	if !ok {
		var err error
		fields, err = parsePackage(filepath.Join(c.root, strings.TrimPrefix(t.PkgPath(), module)))
		if err != nil {
			return "", err
		}
		c.packages[t.PkgPath()] = fields
	}
	text := fields[t.Name()+"."+field]
	if text == "" {
		return "", fmt.Errorf("%s.%s.%s has no doc comment; it is the option's documentation", t.PkgPath(), t.Name(), field)
	}
	return strings.Join(strings.Fields(text), " "), nil
}

func parsePackage(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						fields[spec.Name.Name+"."+name.Name] = f.Doc.Text()
					}
				}
			}
			return true
		})
	}
	return fields, nil
}
