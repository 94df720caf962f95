package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/readmetest"
)

var markedBlock = regexp.MustCompile("(?s)<!-- run: ([a-z]+) -->\n```sh\n(.*?)```\n")

// blocks are the README's commands that a test has to run, by their marks.
func blocks(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, m := range markedBlock.FindAllStringSubmatch(readmetest.Text(t), -1) {
		found[m[1]] += m[2]
	}
	for _, want := range []string{"dev", "serve"} {
		if found[want] == "" {
			t.Fatalf("the README has no block marked <!-- run: %s -->", want)
		}
	}
	if len(found) != 2 {
		t.Errorf("the README marks blocks that no test runs: %v", found)
	}
	return found
}

// workshop is a folder with bin/mayfly in it, as after `make build`.
func workshop(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("mayfly")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "bin", "mayfly")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shell runs commands in dir, and fails the test with what they said.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script) // #nosec G204 -- the README's own commands
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GORACE="+quickExit)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%s: %v", script, out, err)
	}
	return string(out)
}

// start launches the program of a workshop, and ends it with the test.
func start(t *testing.T, dir, name string, args ...string) *process {
	t.Helper()
	p, err := launch(dir, name, os.Environ(), filepath.Join(dir, "bin", "mayfly"), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func TestReadmeDev(t *testing.T) {
	t.Parallel()
	block, dir := blocks(t)["dev"], workshop(t)
	p := start(t, dir, "dev", append([]string{"dev", "--dir", "mayfly-data"}, freePorts()...)...)
	e, err := p.endpoints(filepath.Join(dir, "mayfly-data"))
	if err != nil {
		t.Fatal(err)
	}
	block = strings.NewReplacer("http://127.0.0.1:5555", e.HTTP, "http://127.0.0.1:5556", e.Issuer, "127.0.0.1:5554", e.GRPC).Replace(block)
	if strings.Contains(block, "127.0.0.1:55") {
		t.Errorf("an address that isn't of dev: %s", block)
	}
	if out := shell(t, dir, block); !strings.Contains(out, "alice@example.com (email)") || !strings.Contains(out, "verified for code signing") {
		t.Errorf("the commands say\n%s", out)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func TestReadmeServe(t *testing.T) {
	t.Parallel()
	dir := workshop(t)
	served := false
	for line := range strings.Lines(strings.ReplaceAll(blocks(t)["serve"], "\\\n", "")) {
		args := strings.Fields(line)
		if len(args) < 2 || args[0] != "bin/mayfly" || args[1] != "serve" {
			shell(t, dir, line)
			if args[1] == "init" {
				if err := useFreePorts(filepath.Join(dir, "ca", configName)); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		p := start(t, dir, "serve", args[1:]...)
		e, err := p.serving()
		if err != nil {
			t.Fatal(err)
		}
		code, _, err := get(t.Context(), e.HTTP+"/healthz")
		if err != nil || code != 200 {
			t.Errorf("/healthz: %d, %v", code, err)
		}
		if err := p.end(); err != nil {
			t.Error(err)
		}
		served = true
	}
	if !served {
		t.Error("nothing is served")
	}
}

// Every command of the README is one, with the flags it names, and every command is there.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	root.InitDefaultCompletionCmd()
	named := map[string]bool{}
	for _, row := range readmetest.Table(t, "Command") {
		for _, line := range readmetest.Quoted(row[0]) {
			words := strings.Fields(line)
			cmd, rest, err := root.Find(words[1:])
			if words[0] != "mayfly" || err != nil || cmd == root {
				t.Errorf("`%s` is no command: %v", line, err)
				continue
			}
			named[cmd.CommandPath()] = true
			for _, word := range rest {
				if flag, found := strings.CutPrefix(word, "--"); found && cmd.Flags().Lookup(flag) == nil {
					t.Errorf("`%s`: there is no flag --%s", line, flag)
				}
			}
		}
	}
	for _, cmd := range root.Commands() {
		leaves := cmd.Commands()
		if len(leaves) == 0 || cmd.Name() == "completion" {
			leaves = []*cobra.Command{cmd}
		}
		for _, leaf := range leaves {
			if !named[leaf.CommandPath()] && leaf.Name() != "help" && leaf.Name() != "exit-codes" {
				t.Errorf("the README doesn't name `%s`", leaf.CommandPath())
			}
		}
	}
}
