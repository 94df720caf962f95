package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

// jsonScript runs every command with --json.
const jsonScript = "testdata/script/json.txtar"

// fieldsOf are what docs/json.md names of each command with --json.
func fieldsOf(page string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(page) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && strings.HasPrefix(cells[1], " `mayfly ") {
			for _, command := range quotedIn(cells[1]) {
				all[command] = append([]string{}, quotedIn(strings.Join(cells[2:], "|"))...)
			}
		}
	}
	return all
}

// TestJSONPage: docs/json.md has every command with --json and no other, and the script runs each.
func TestJSONPage(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile(jsonScript)
	if err != nil {
		t.Fatal(err)
	}
	named := fieldsOf(page(t, "docs/json.md"))
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		if cmd.Flags().Lookup("json") != nil {
			if named[path] == nil {
				t.Errorf("docs/json.md doesn't name `%s`", path)
			}
			if !regexp.MustCompile(`(?m)^json \d ` + path + ` `).Match(script) {
				t.Errorf("%s doesn't run %s", jsonScript, path)
			}
		} else if named[path] != nil {
			t.Errorf("docs/json.md names `%s`, which has no --json", path)
		}
		delete(named, path)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for path := range named {
		t.Errorf("docs/json.md names `%s`, which is no command", path)
	}
}

var snakeCase = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// misnamed is an error for a name at any depth that isn't in snake_case.
func misnamed(v any) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := misnamed(e); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, e := range v {
			if !snakeCase.MatchString(name) {
				return fmt.Errorf("the name %q", name)
			}
			if err := misnamed(e); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// cmdJSON runs a command with --json: standard output has JSON alone, in snake_case, with no
// field that docs/json.md doesn't name, and neither the token nor a key; on a failure standard error is the error's object.
// It sets SERIAL where the answer has one.
func cmdJSON(ts *testscript.TestScript, _ bool, args []string) {
	cmdExit(ts, false, append(slices.Clone(args), "--json"))
	text, err := os.ReadFile("../../docs/json.md")
	ts.Check(err)
	all := fieldsOf(string(text))
	named := all[strings.Join(args[1:min(4, len(args))], " ")]
	if named == nil {
		named = all[strings.Join(args[1:3], " ")]
	}
	free := strings.HasSuffix(args[2], "search") // whose fields another page lists
	d, said := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout"))), 0
	for ; ; said++ {
		v := map[string]any{}
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			ts.Fatalf("standard output isn't JSON alone: %v", err)
		}
		ts.Check(misnamed(v))
		if serial, is := v["serial"].(string); is {
			ts.Setenv("SERIAL", serial)
		}
		for name := range v {
			if !free && args[2] != "audit" && !slices.Contains(named, name) {
				ts.Fatalf("docs/json.md doesn't name %s of %v, but %v", name, args[1:], named)
			}
		}
	}
	failure := ts.ReadFile("stderr")
	token, err := os.ReadFile(ts.MkAbs("token"))
	ts.Check(err)
	if printed := ts.ReadFile("stdout") + failure; strings.Contains(printed, string(bytes.TrimSpace(token))) || strings.Contains(printed, "PRIVATE KEY") {
		ts.Fatalf("the token or a private key is printed:\n%s", printed)
	}
	if args[0] == "0" {
		if said == 0 || failure != "" {
			ts.Fatalf("%d objects; standard error has %q", said, failure)
		}
		return
	}
	var got struct{ Error trouble }
	strict := json.NewDecoder(strings.NewReader(failure))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&got); err != nil || got.Error.Message == "" || fmt.Sprint(got.Error.ExitCode) != args[0] || strings.Count(failure, "\n") != 1 {
		ts.Fatalf("standard error isn't one failure: %v\n%s", err, failure)
	}
}
