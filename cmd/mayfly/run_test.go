package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", name, got, want)
	}
}

// mayfly runs one command line in this process.
func mayfly(t *testing.T, in string, args ...string) (code int, out, err string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(args, streams{strings.NewReader(in), &o, &e})
	return code, o.String(), e.String()
}

func TestCommandLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		code int
		err  string // in the error output
	}{
		{"", exitOK, ""},
		{"help", exitOK, ""},
		{"help exit-codes", exitOK, ""},
		{"help cert show", exitOK, ""},
		{"help frobnicate", exitUsage, `mayfly: unknown help topic "frobnicate"`},
		{"cert", exitOK, ""},
		{"completion bash", exitOK, ""},
		{"frobnicate", exitUsage, `mayfly: unknown command "frobnicate"`},
		{"--frob", exitUsage, "mayfly: unknown flag: --frob"},
		{"version extra", exitUsage, `mayfly: "extra" is more than mayfly version takes`},
		{"version --json=maybe", exitUsage, `--json "maybe" isn't true or false`},
		{"cert show", exitUsage, "mayfly: FILE|- is missing"},
		{"request --token-file a --token-stdin", exitUsage, "request takes --token-file or --token-stdin, and only one of them\n  fix: keep --token-file ("},
		{"log restore --dir a", exitUsage, "needs --from and --mark\n  fix: add --from (the backup) and --mark (the log's high-water mark); `mayfly log restore --help`"},
		{"revoke", exitUsage, "revoke needs --certificate, --bundle, --image, --serial, --where or --approve\n  fix: add --certificate ("},
		{"init --dir", exitUsage, "init needs a value for --dir\n  fix: give --dir (folder to create)"},
		{"request --timeout tomorrow", exitUsage, `--timeout "tomorrow" isn't a duration`},
		{"search --limit many", exitUsage, `--limit "many" isn't a whole number`},
	} {
		code, _, errText := mayfly(t, "", strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(errText, c.err) {
			t.Errorf("mayfly %s: exit code %d, said %q", c.args, code, errText)
		}
		if code == exitUsage && !strings.Contains(errText, "\n  fix: ") {
			t.Errorf("mayfly %s: no next step in %q", c.args, errText)
		}
	}
}

// fullStream takes nothing, as a file of a full disk.
type fullStream struct{}

func (fullStream) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// Who doesn't get the answer hears that by the exit code, whatever its form.
func TestAnswerThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"version"}, {"version", "--json"}} {
		var said bytes.Buffer
		if code := run(args, streams{strings.NewReader(""), fullStream{}, &said}); code != exitFailed || !strings.Contains(said.String(), "no space left") {
			t.Errorf("%q: exit code %d, said %q", args, code, said.String())
		}
	}
}

func TestHelpTexts(t *testing.T) {
	t.Parallel()
	for _, topic := range []string{"exit-codes", "request", "cert show", "healthcheck"} {
		code, out, _ := mayfly(t, "", append([]string{"help"}, strings.Fields(topic)...)...)
		if code != exitOK {
			t.Errorf("help %s: exit code %d", topic, code)
		}
		golden(t, "help-"+strings.ReplaceAll(topic, " ", "-")+".txt", out)
	}
}

// Every command has a short description, and no flag takes a secret.
func TestEveryCommandIsDescribed(t *testing.T) {
	t.Parallel()
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q", c.CommandPath(), c.Short)
		}
		for _, secret := range []string{"token", "client-secret", "password", "passphrase"} {
			if f := c.Flags().Lookup(secret); f != nil && f.Value.Type() == "string" {
				t.Errorf("%s takes a secret: --%s", c.CommandPath(), secret)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// pinFault is a configuration whose key's token refuses the PIN.
func pinFault() error {
	var f, all setting.Faults
	f.Add("ca.key", "%v", kms.ErrPINRefused)
	var faults *setting.FaultError
	if errors.As(f.Err(), &faults) {
		all.AddAll(faults)
	}
	errors.As(all.Err(), &faults)
	return startFailure(faults, "")
}

func TestReport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code int
		want string
	}{
		{nil, exitOK, ""},
		{errors.New("plain"), exitFailed, "mayfly: plain\n"},
		{errors.New("two\nlines\n"), exitFailed, "mayfly: two\n  lines\n"},
		{errors.New("esc\x1b[2J \u202e"), exitFailed, `mayfly: esc\x1b[2J \u202e` + "\n"},
		{fmt.Errorf("over: %w", &failure{code: exitRefused, fix: "do this", err: errors.New("under")}), exitRefused, "mayfly: over: under\n  fix: do this\n"},
		{fmt.Errorf("opening: %w", &failure{code: exitFailed, err: pinFault()}), exitPIN, "mayfly: opening: the configuration can't be used:\n  ca.key: the token refuses the PIN\n"},
		{usage("read it", "bad %s", "flag"), exitUsage, "mayfly: bad flag\n  fix: read it\n"},
		{fmt.Errorf("asking: %w", context.Canceled), exitFailed, "mayfly: interrupted\n"},
		{classify(&client.Error{Kind: client.Failed, Text: "x"}), exitFailed, "mayfly: x\n"},
		{classify(&client.Error{Kind: client.Misused, Text: "x"}), exitUsage, "mayfly: x\n"},
		{classify(&client.Error{Kind: client.Refused, Text: "x"}), exitRefused, "mayfly: x\n"},
		{classify(&client.Error{Kind: client.Unavailable, Text: "x"}), exitUnavailable, "mayfly: x\n"},
		{classify(&client.Error{Kind: client.Unverified, Text: "x", Fix: "y"}), exitUnverified, "mayfly: x\n  fix: y\n"},
	} {
		var b bytes.Buffer
		if code := report(&b, c.err, false); code != c.code || b.String() != c.want {
			t.Errorf("%v: code %d, %q", c.err, code, b.String())
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	info := &debug.BuildInfo{
		Main:     debug.Module{Path: "m", Version: "v1.2.3"},
		Deps:     []*debug.Module{{Path: "example.com/a", Version: "v0.1.0"}, {Path: "example.com/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/c", Version: "v2.0.0"}}},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}, {Key: "vcs.modified", Value: "true"}},
	}
	b := describeBuild(info, "", "", "")
	b.Go, b.Platform = "go1.99", "linux/amd64"
	var text bytes.Buffer
	b.print(&text)
	golden(t, "version.txt", text.String())

	linked := describeBuild(nil, "v9", "def-dirty", "today")
	if linked.Version != "v9" || linked.Commit != "def" || !linked.Dirty || linked.Date != "today" {
		t.Errorf("the linker's values: %+v", linked)
	}
	if none := describeBuild(nil, "", "", ""); none.Version != "devel" {
		t.Errorf("nothing known: %+v", none)
	}
	code, out, _ := mayfly(t, "", "version", "--json")
	var got buildInfo
	if err := json.Unmarshal([]byte(out), &got); code != exitOK || err != nil || got.Go == "" || got.Version == "" {
		t.Errorf("code %d, %v, %s", code, err, out)
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		code   int
		out    string
		err    string
	}{
		"ready":     {200, "log: ok\n", exitOK, "ready\nlog: ok\n", ""},
		"not ready": {503, "log: the disk is full\x1b[0m", exitFailed, "", "mayfly: not ready: URL answered 503\n  log: the disk is full\\x1b[0m\n"},
		"no page":   {404, "", exitFailed, "", "mayfly: not ready: URL answered 404\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			defer server.Close()
			code, out, errText := mayfly(t, "", "healthcheck", "--url", server.URL)
			if code != c.code || out != c.out || errText != strings.ReplaceAll(c.err, "URL", server.URL) {
				t.Errorf("code %d, %q, %q", code, out, errText)
			}
		})
	}
	if code, _, errText := mayfly(t, "", "healthcheck", "--url", "http://127.0.0.1:1/readyz"); code != exitFailed || !strings.Contains(errText, "not ready") {
		t.Errorf("nobody there: code %d, %q", code, errText)
	}
	if code, _, _ := mayfly(t, "", "healthcheck", "--url", ":"); code != exitUsage {
		t.Errorf("not a URL: code %d", code)
	}
}
