package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/rotation"
)

var (
	shellBlock    = regexp.MustCompile("(?s)```sh\n(.*?)```\n")
	inlineCommand = regexp.MustCompile("`(mayfly [^`]+)`")
)

// TestCTLogDoc runs every command of docs/ctlog.md that is Mayfly's, in a CA's life:
// it is read, copied, followed by another log, frozen, and restored. Those of
// Trillian's are run by the conformance suite.
func TestCTLogDoc(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "ctlog.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{} // by the subcommand that each begins with
	for _, m := range shellBlock.FindAllStringSubmatch(string(text), -1) {
		if words := strings.Fields(m[1]); words[0] == "mayfly" {
			blocks[strings.Join(words[1:3], " ")] = m[1]
		}
	}
	dir := workshop(t)
	p := start(t, dir, "dev", append([]string{"dev", "--dir", "ca"}, freePorts()...)...)
	e, err := p.endpoints(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, replace ...string) string {
		t.Helper()
		block := blocks[name]
		if block == "" {
			t.Fatalf("docs/ctlog.md has no commands that begin with mayfly %s", name)
		}
		delete(blocks, name)
		return shell(t, dir, strings.NewReplacer(append(replace, "/backup/", dir+"/")...).Replace(block))
	}
	awaits := func(what, script, want string) {
		t.Helper()
		if err := p.until(what, func() (bool, error) { return strings.Contains(shell(t, dir, script), want), nil }); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, dir, "curl -sf '"+e.Issuer+"/dev/token?email=alice@example.com' | mayfly request --ca "+e.HTTP+" --token-stdin")
	awaits("the checkpoint covers the certificate", "curl -sf "+e.CTLog+"/checkpoint", "\n1\n")

	if out := run("log show", " 42 ", " 0 "); !strings.Contains(out, "names") || !strings.Contains(out, "c2sp.org/tlog-proof@v1") || !strings.Contains(out, "part of this log") {
		t.Errorf("show, proof and verify say\n%s", out)
	}
	if out := run("log backup"); !strings.Contains(out, "is whole") {
		t.Errorf("backup says\n%s", out)
	}
	soon := time.Now().Add(rotation.TakeUp + 5*time.Second).UTC().Format(time.RFC3339)
	if out := run("log rotate", "--yearly", "--force --at "+soon); !strings.Contains(out, " follows ") || !strings.Contains(out, "\nnext ") {
		t.Errorf("rotate and list say\n%s", out)
	}
	awaits("the log ends", "mayfly log list --config ca/mayfly.yaml", "\nended ")
	if out := run("log freeze"); !strings.Contains(out, "is frozen: 1 entries") {
		t.Errorf("freeze says\n%s", out)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
	shell(t, dir, "mv ca/ctlog lost")
	if out := run("log restore"); !strings.Contains(out, "The log of 1 entries is in ca/ctlog") {
		t.Errorf("restore says\n%s", out)
	}
	for name := range blocks {
		t.Errorf("no test runs the commands that begin with mayfly %s", name)
	}
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	for _, m := range inlineCommand.FindAllStringSubmatch(string(text), -1) {
		words := strings.Fields(m[1])
		cmd, rest, err := root.Find(words[1:])
		if err != nil || cmd == root {
			t.Errorf("`%s` is no command: %v", m[1], err)
		}
		for _, word := range rest {
			if flag, found := strings.CutPrefix(word, "--"); found && cmd.Flags().Lookup(flag) == nil {
				t.Errorf("`%s`: there is no flag --%s", m[1], flag)
			}
		}
	}
}
