package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// page is one of the documents, by its path from the root.
func page(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// workshop is a folder with bin/mayfly in it, as after `make build`.
func workshop(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	putBinary(t, dir)
	return dir
}

// putBinary puts bin/mayfly into a folder.
func putBinary(t *testing.T, dir string) {
	t.Helper()
	program, err := exec.LookPath("mayfly")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "bin", "mayfly")); err != nil {
		t.Fatal(err)
	}
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

// table gives the cells of a page's table whose first heading is the one given.
func table(t *testing.T, path, heading string) [][]string {
	t.Helper()
	_, after, found := strings.Cut(page(t, path), "\n| "+heading+" |")
	if !found {
		t.Fatalf("%s has no table headed %s", path, heading)
	}
	var rows [][]string
	for line := range strings.Lines(after[strings.IndexByte(after, '\n')+1:]) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(cells[0], "---") {
			rows = append(rows, cells)
		}
	}
	if len(rows) < 5 {
		t.Fatalf("the table headed %s has %d rows", heading, len(rows))
	}
	return rows
}

var quoted = regexp.MustCompile("`([^`]+)`")

func quotedIn(cell string) (all []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

// Every command of the page is one, with the flags it names, and every command is there.
func TestCommandsPage(t *testing.T) {
	t.Parallel()
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	root.InitDefaultCompletionCmd()
	named := map[string]bool{}
	for _, row := range table(t, "docs/commands.md", "Command") {
		for _, line := range quotedIn(row[0]) {
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
				t.Errorf("docs/commands.md doesn't name `%s`", leaf.CommandPath())
			}
		}
	}
}

// Every endpoint of the page is served as it says, and every route is there.
func TestEndpointsOfAPIPage(t *testing.T) {
	t.Parallel()
	dir := workshop(t)
	e, err := start(t, dir, "dev", append([]string{"dev", "--dir", "mayfly-data"}, freePorts()...)...).endpoints(filepath.Join(dir, "mayfly-data"))
	if err != nil {
		t.Fatal(err)
	}
	_, index, err := get(t.Context(), e.HTTP+"/")
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]string{}
	for line := range strings.Lines(string(index)) {
		f := strings.Fields(line)
		switch {
		case len(f) != 2 || !strings.HasPrefix(f[1], "/"):
		case strings.HasPrefix(f[1], "/ctlog/"): // the log's path has the year in it
			served["/ctlog/…"] = f[0]
		default:
			served[f[1]] = f[0]
		}
	}
	for _, row := range table(t, "docs/api.md", "Endpoint") {
		method := ""
		for _, name := range quotedIn(row[0]) {
			path := name
			if m, p, found := strings.Cut(name, " "); found {
				method, path = m, p
			}
			switch {
			case strings.HasPrefix(path, "?"): // a query of the path before
			case path == "/metrics":
				if code, text, err := get(t.Context(), e.Metrics+path); err != nil || code != 200 || !bytes.Contains(text, []byte("mayfly_")) {
					t.Errorf("%s%s: %d, %v", e.Metrics, path, code, err)
				}
			case served[path] != method:
				t.Errorf("docs/api.md says %s %s, the service %q", method, path, served[path])
			}
			delete(served, path)
		}
		for _, name := range quotedIn(row[1]) {
			checkRPC(t, strings.Replace(name, "…", "dev.sigstore.fulcio.", 1))
		}
	}
	for path, method := range served {
		t.Errorf("docs/api.md doesn't name %s %s", method, path)
	}
}

// checkRPC wants a service, or a method of one.
func checkRPC(t *testing.T, name string) {
	t.Helper()
	full := protoreflect.FullName(strings.ReplaceAll(name, "/", "."))
	if _, err := protoregistry.GlobalFiles.FindDescriptorByName(full); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// documentedStatus is each kind of failure on REST and on gRPC.
var documentedStatus = map[fault.Kind]struct {
	status int
	code   codes.Code
}{
	fault.Malformed: {400, codes.InvalidArgument}, fault.TooLarge: {413, codes.InvalidArgument},
	fault.Unauthenticated: {401, codes.Unauthenticated}, fault.Denied: {403, codes.PermissionDenied},
	fault.RateLimited: {429, codes.ResourceExhausted}, fault.Unavailable: {503, codes.Unavailable},
	fault.DeadlineExceeded: {504, codes.DeadlineExceeded}, fault.Canceled: {499, codes.Canceled}, fault.Internal: {500, codes.Internal},
	fault.NotFound: {404, codes.NotFound}, fault.NotAllowed: {405, codes.Unimplemented},
}

// The page's reasons are the closed list, each beside its status.
func TestReasonsOfAPIPage(t *testing.T) {
	t.Parallel()
	left := fault.Reasons()
	for _, row := range table(t, "docs/api.md", "Status") {
		for _, name := range quotedIn(row[2]) {
			at := slices.Index(left, fault.Reason(name))
			if at < 0 {
				t.Errorf("%s is no reason, or is there twice", name)
				continue
			}
			want := documentedStatus[left[at].Kind()]
			if !strings.Contains(row[0], strconv.Itoa(want.status)) || !slices.Contains(codesIn(row[1]), want.code) {
				t.Errorf("%s is %d, %v; it stands beside %s,%s", name, want.status, want.code, row[0], row[1])
			}
			left = slices.Delete(left, at, at+1)
		}
	}
	if len(left) > 0 {
		slices.Sort(left)
		t.Errorf("docs/api.md doesn't name %v", left)
	}
}

// Every metric of a running service stands on the page with its type and labels, and
// every metric of the page is one.
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	listed := map[string]string{}
	for line := range strings.Lines(page(t, "docs/metrics.md")) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) == 4 && strings.HasPrefix(cells[0], " `mayfly_") {
			listed[quotedIn(cells[0])[0]] = strings.TrimSpace(cells[1]) + " " + strings.Join(slices.Sorted(slices.Values(quotedIn(cells[2]))), " ")
		}
	}
	dir := workshop(t)
	e, err := start(t, dir, "dev", append([]string{"dev", "--dir", "mayfly-data"}, freePorts()...)...).endpoints(filepath.Join(dir, "mayfly-data"))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, dir, "curl -s '"+e.Issuer+"/dev/token?email=a@b.example' | bin/mayfly request --ca "+e.HTTP+" --token-stdin")
	code, scrape, err := get(t.Context(), e.Metrics+"/metrics")
	if err != nil || code != 200 {
		t.Fatal(code, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(scrape))
	if err != nil {
		t.Fatal(err)
	}
	for name, family := range families {
		if !strings.HasPrefix(name, "mayfly_") {
			continue
		}
		var labels []string
		for _, l := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		if got := strings.ToLower(family.GetType().String()) + " " + strings.Join(labels, " "); listed[name] != got {
			t.Errorf("%s is a %s; docs/metrics.md says %q", name, got, listed[name])
		}
	}
	source := shell(t, filepath.Join("..", ".."), "grep -rhoE '\"mayfly_[a-z_]+\"' --include=*.go ca cmd ctlog identity server internal | sort -u")
	for name := range listed {
		if !strings.Contains(source, strconv.Quote(name)) {
			t.Errorf("docs/metrics.md names %s, which is no metric", name)
		}
	}
	for line := range strings.Lines(source) {
		if name := strings.Trim(strings.TrimSpace(line), `"`); listed[name] == "" && !strings.HasSuffix(name, "_") {
			t.Errorf("docs/metrics.md doesn't name %s", name)
		}
	}
}

func codesIn(cell string) (found []codes.Code) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		if slices.Contains(strings.FieldsFunc(cell, func(c rune) bool { return c == ',' || c == ' ' }), code.String()) {
			found = append(found, code)
		}
	}
	return found
}
