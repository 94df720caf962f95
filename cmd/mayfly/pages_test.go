package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/rotation"
)

// Every block of commands in the pages has a mark above it that a reader doesn't see:
//
//	<!-- run: NAME -->                  pageTests run it
//	<!-- run with PKCS #11: NAME -->    a test of the build with PKCS #11 does
//	<!-- run in conformance: NAME -->   internal/tools/conformance does: it needs foreign programs
//	<!-- not run: WHY -->
//
// Blocks of one name and page are run one after the other.
var blockMark = regexp.MustCompile(`^<!-- (run|run with PKCS #11|run in conformance|not run): (.+) -->$`)

// blocks are the commands of a page, by how they are run and their name.
func blocks(t *testing.T, path string) map[string]string {
	t.Helper()
	found := map[string]string{}
	mark, in := "", ""
	for line := range strings.Lines(page(t, path)) {
		text := strings.TrimRight(line, "\n")
		switch {
		case in != "" && text == "```":
			in = ""
		case in != "":
			found[in] += line
		case text == "```sh" || text == "```console" || text == "```bash":
			m := blockMark.FindStringSubmatch(mark)
			if m == nil {
				t.Errorf("%s: a block of commands has no mark that says how it is run, or why it isn't, but %q", path, mark)
				m = []string{"", "not run", "unknown"}
			}
			in = m[1] + ": " + m[2]
		}
		mark = text
	}
	return found
}

// pageTests run the blocks of each page that are marked so.
var pageTests = map[string]map[string]func(t *testing.T, script string){
	"README.md":       {"make": nil, "dev": readmeDev, "serve": ownCA}, // readmeDev begins with make
	"docs/running.md": {"serve": ownCA},
	"docs/audit.md":   {"jq": auditTrail},
	"docs/ceremonies.md": {
		"online":  says("ok  key: file:issuing.key.pem is the first certificate's, and signs"),
		"offline": says("ok  root: it is that of root.pem"),
		"policy":  says("ok  chain: 2 certificates, from CN=Example policy CA"),
	},
	"docs/authorities.md": {"make": nil, "rotate": nil, "activate": nil, "distrust": authorityLife},
	"docs/tuf.md":         {"tuf": signedRoot},
	"docs/timestamps.md":  {"sign": nil, "verify": lastingSignature},
	"docs/revocation.md":  {"deny": nil, "find": nil, "revoke": nil, "look": compromiseDrill},
	"docs/runbooks.md": {
		"leak": nil, "leak-count": nil, "leak-excise": leakExcised, "leak-distrust": leakDistrusted,
		"log-look": nil, "log-restore": nil, "log-new": nil, "log-create": lostLog,
		"disk": fullDisk, "clock-look": wrongClock, "issuer-look": nil, "issuer-file": issuerDown, "index": nil, "index-search": lostIndex,
		"fulcio-issuers": nil, "fulcio-key": nil, "fulcio-config": fromFulcio,
	},
	"docs/backup.md": {"backup": nil, "look": nil, "restore": nil, "lost": lostHost},
	"docs/ctlog.md":  {"read": nil, "backup": nil, "rotate": nil, "freeze": nil, "restore": logLife},
}

// pages are all, by their paths from the root.
func pages(t *testing.T) (all []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/tasks/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", "..", pattern))
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range found {
			all = append(all, strings.TrimPrefix(filepath.ToSlash(file), "../../"))
		}
	}
	return all
}

// TestPages runs the commands of all pages as they are written, from the root of a clean
// clone, where their reader stands.
func TestPages(t *testing.T) {
	t.Parallel()
	tested := maps.Clone(pageTests)
	for _, path := range pages(t) {
		tests := maps.Clone(tested[path])
		delete(tested, path)
		for mark, script := range blocks(t, path) {
			name, run := strings.CutPrefix(mark, "run: ")
			if !run {
				continue
			}
			test, known := tests[name]
			delete(tests, name)
			if !known {
				t.Errorf("%s: no test runs the block %q", path, name)
			}
			if test != nil {
				t.Run(path+"/"+name, func(t *testing.T) { t.Parallel(); test(t, script) })
			}
		}
		for name := range tests {
			t.Errorf("%s has no block that is marked <!-- run: %s -->", path, name)
		}
	}
	for path := range tested {
		t.Errorf("there is no page %s", path)
	}
}

var inlineCommand = regexp.MustCompile("`((?:mayfly|make) [^`]+)`")

// TestCommandsInText: what a page calls a command of Mayfly's or a target of make is one,
// with the flags that it names. Decisions and changes tell of what was.
func TestCommandsInText(t *testing.T) {
	t.Parallel()
	root, _ := newRootCommand(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	root.InitDefaultCompletionCmd()
	targets := "\n" + page(t, "Makefile")
	found := 0
	for _, path := range pages(t) {
		if path == "CHANGELOG.md" || strings.HasPrefix(path, "docs/decisions/") {
			continue
		}
		for _, m := range inlineCommand.FindAllStringSubmatch(page(t, path), -1) {
			found++
			words := strings.Fields(m[1])
			if words[0] == "make" {
				for _, word := range words[1:] {
					if strings.Contains(word, "=") {
						break // and what it means for the target, in words
					}
					if !strings.Contains(targets, "\n"+word+":") {
						t.Errorf("%s: `%s`: the Makefile has no target %s", path, m[1], word)
					}
				}
				continue
			}
			cmd, rest, err := root.Find(words[1:])
			if err != nil || cmd == root && words[1] != "COMMAND" {
				t.Errorf("%s: `%s` is no command: %v", path, m[1], err)
				continue
			}
			for _, word := range rest {
				if flag, is := strings.CutPrefix(word, "--"); is && cmd.Flags().Lookup(flag) == nil && cmd.InheritedFlags().Lookup(flag) == nil && flag != "help" {
					t.Errorf("%s: `%s`: there is no flag --%s", path, m[1], flag)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands", found)
	}
}

// clone is a clean clone of this tree: what git ignores isn't in it.
func clone(t *testing.T) string {
	t.Helper()
	root, dir := filepath.Join("..", ".."), t.TempDir()
	ignored := strings.Fields(page(t, ".gitignore"))
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		switch {
		case rel == ".git", slices.Contains(ignored, "/"+rel), slices.Contains(ignored, "/"+rel+"/"):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return os.MkdirAll(to, 0o750)
		case !entry.Type().IsRegular():
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(file) // #nosec G304 -- a file of this tree
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// built is a clean clone after `make build`.
func built(t *testing.T) string {
	t.Helper()
	dir := clone(t)
	putBinary(t, dir)
	return dir
}

// says runs commands that print this.
func says(want string) func(*testing.T, string) {
	return func(t *testing.T, script string) {
		if said := shell(t, built(t), script); !strings.Contains(said, want) {
			t.Errorf("it said\n%s\nwant %q", said, want)
		}
	}
}

// readmeDev is the README's beginning: `make run` in one terminal, and the block after it in a second.
func readmeDev(t *testing.T, script string) {
	dir := clone(t)
	const alone = "unset MAKEFLAGS MFLAGS MAKELEVEL MAYFLY_DIR EMAIL\n" // a make may run this test
	shell(t, dir, alone+"make build")
	p, err := launchTerminal(dir, "make", append(os.Environ(), "MAYFLY_FLAGS="+strings.Join(freePorts(), " ")), "sh", "-euc", alone+blocks(t, "README.md")["run: make"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	e, err := p.endpoints(filepath.Join(dir, "mayfly-data"))
	if err != nil {
		t.Fatal(err)
	}
	script = strings.NewReplacer("http://127.0.0.1:5555", e.HTTP, "http://127.0.0.1:5556", e.Issuer, "127.0.0.1:5554", e.GRPC).Replace(script)
	if strings.Contains(script, "127.0.0.1:55") {
		t.Errorf("an address that isn't of dev: %s", script)
	}
	if out := shell(t, dir, script); !strings.Contains(out, "alice@example.com (email)") || !strings.Contains(out, "verified for code signing") {
		t.Errorf("the commands say\n%s", out)
	}
	// Ctrl-C ends it all.
	if err := p.signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("Ctrl-C didn't end it: %s", p.said())
	}
	if _, err := os.Stat(filepath.Join(dir, "mayfly-data", endpointsName)); !os.IsNotExist(err) {
		t.Errorf("it says where it is after its end: %v", err)
	}
}

// signedRoot has three people sign, publishes, and follows what is served.
func signedRoot(t *testing.T, script string) {
	dir := built(t)
	shell(t, dir, "mayfly init --dir my-ca --url https://ca.example.com --issuer https://accounts.google.com --allow true")
	if err := useFreePorts(filepath.Join(dir, "my-ca", configName)); err != nil {
		t.Fatal(err)
	}
	sign, verify, _ := strings.Cut(script, "mayfly tuf verify ")
	if out := shell(t, dir, sign); strings.Count(out, "Published.") != 2 || !strings.Contains(out, "root       2, ") || !strings.Contains(out, "targets    3, ") {
		t.Errorf("the commands say\n%s", out)
	}
	p := start(t, dir, "serve", "serve", "--config", "my-ca/"+configName)
	at, err := p.serving()
	if err != nil {
		t.Fatal(err)
	}
	out := shell(t, dir, "mayfly tuf verify "+strings.ReplaceAll(verify, "https://ca.example.com", at.HTTP))
	if !strings.Contains(out, "root       2, ") || !strings.Contains(out, "targets    3, ") || !strings.Contains(out, "  trusted_root.json") {
		t.Errorf("the client says\n%s", out)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// ownCA makes a CA, checks it and serves it.
func ownCA(t *testing.T, script string) {
	dir := built(t)
	served := false
	for line := range strings.Lines(strings.ReplaceAll(script, "\\\n", "")) {
		args := strings.Fields(line)
		switch args[1] {
		case "serve":
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
		default:
			shell(t, dir, line)
			if args[1] == "init" {
				if err := useFreePorts(filepath.Join(dir, "my-ca", configName)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if !served {
		t.Error("nothing is served")
	}
}

// issuing is a CA in a folder of a clean clone, with one certificate in its log.
func issuing(t *testing.T, name string) (dir string, p *process, e endpoints) {
	t.Helper()
	dir = built(t)
	p = start(t, dir, "dev", append([]string{"dev", "--dir", name}, freePorts()...)...)
	e, err := p.endpoints(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, dir, "curl -sf '"+e.Issuer+"/dev/token?email=alice@example.com' | mayfly request --ca "+e.HTTP+" --token-stdin")
	return dir, p, e
}

// lastingSignature signs, and verifies by a clock that is a month ahead.
func lastingSignature(t *testing.T, script string) {
	dir, _, e := issuing(t, "running")
	shell(t, dir, strings.ReplaceAll(blocks(t, "docs/timestamps.md")["run: sign"], "https://ca.example.com", e.HTTP)+"cp running/authority/root.pem .")
	later := fmt.Sprintf("-attime %d", time.Now().AddDate(0, 1, 0).Unix())
	if out := shell(t, dir, "openssl verify "+later+" -CAfile root.pem -untrusted mayfly.crt.pem mayfly.crt.pem 2>&1 || true"); !strings.Contains(out, "certificate has expired") {
		t.Errorf("without the timestamp:\n%s", out)
	}
	out := shell(t, dir, strings.Replace(script, "openssl ts -verify", "openssl ts -verify "+later, 1))
	for _, want := range []string{"Verification: OK", "mayfly.crt.pem: OK", "Verified OK"} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands lack %q:\n%s", want, out)
		}
	}
}

// compromiseDrill goes through the page: of three certificates the one of a stolen identity
// is denied, found and revoked, and openssl refuses it alone.
func compromiseDrill(t *testing.T, look string) {
	dir, p, e := issuing(t, "running")
	verifier := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "bin", "mayfly-verify"), "../mayfly-verify")
	if out, err := verifier.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	request := func(version, who string) string {
		return "date > " + version + "; curl -sf '" + e.Issuer + "/dev/token?sub=x&email=" + who + "' | mayfly request --ca " + e.HTTP + " --token-stdin --force --sign " + version + " --bundle " + version + ".json"
	}
	shell(t, dir, request("v1", "pipeline@example.com"))
	shell(t, dir, request("v2", "pipeline@example.com"))
	begun := time.Now()
	commands := blocks(t, "docs/revocation.md")
	shell(t, dir, commands["run: deny"])
	shell(t, dir, "until "+request("v3", "pipeline@example.com")+" 2>&1 | grep -q POLICY_DENIED; do sleep 0.2; done")
	at := strings.NewReplacer("https://ca.example.com", e.HTTP, "https://idp.example.com", e.Issuer).Replace
	said := shell(t, dir, at(commands["run: find"])) + shell(t, dir, at(commands["run: revoke"])) + shell(t, dir, "PATH=$PWD/bin:$PATH\n"+at(look))
	for _, want := range []string{"1 certificates are meant", "1 revoked, for good", `"reference":"INC-7"`, "v1.pem: OK", "v2 is refused with 3", "certificate revoked"} {
		if !strings.Contains(said, want) {
			t.Errorf("it says\n%s\nwant %q", said, want)
		}
	}
	t.Logf("the drill took %v", time.Since(begun))
	if strings.Contains(said, "v1 is refused") {
		t.Errorf("v1 is refused:\n%s", said)
	}
	shell(t, dir, request("v4", "new-pipeline@example.com"))
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// auditTrail reads a trail with a certificate and a refusal in it.
func auditTrail(t *testing.T, script string) {
	dir, p, e := issuing(t, "running")
	shell(t, dir, "! curl -sf '"+e.Issuer+"/dev/token?email=alice@example.com&aud=other' | mayfly request --ca "+e.HTTP+" --token-stdin --force")
	trail, err := os.ReadFile(filepath.Join(dir, "running", "audit", "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var first struct {
		Data struct {
			ID     string `json:"request_id"`
			Serial string `json:"serial"`
		} `json:"data"`
	}
	lines := strings.Split(strings.TrimSpace(string(trail)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &first); err != nil || first.Data.ID == "" {
		t.Fatalf("%v: %s", err, trail)
	}
	id := regexp.MustCompile(`request_id == "[A-Z0-9]+"`)
	if !id.MatchString(script) {
		t.Fatalf("it looks for no request: %s", script)
	}
	said := shell(t, filepath.Join(dir, "running"), id.ReplaceAllString(script, fmt.Sprintf("request_id == %q", first.Data.ID)))
	for _, want := range []string{"\talice@example.com\t" + first.Data.Serial + "\n", `"request_id": "` + first.Data.ID + `"`} {
		if !strings.Contains(said, want) {
			t.Errorf("it says\n%s\nwant %q", said, want)
		}
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// authorityLife lets one authority follow another, whose key is stolen.
func authorityLife(t *testing.T, distrust string) {
	dir := built(t)
	page := blocks(t, "docs/authorities.md")
	shell(t, dir, `mkdir offline
mayfly init --dir my-ca --root-key-out offline/root.key.pem --issuer https://accounts.google.com --allow true
sed -i 's/y20[0-9][0-9]/y2026/' my-ca/mayfly.yaml my-ca/authorities.json
sed -i 's/^ca:/ca:\n  propagation: 0s/' my-ca/mayfly.yaml`)
	script := page["run: make"] + page["run: rotate"] + page["run: activate"] + distrust + "mayfly check --config my-ca/mayfly.yaml\nmayfly authority list --config my-ca/mayfly.yaml\n"
	said := shell(t, dir, strings.ReplaceAll(script, "/media/offline", "offline"))
	if !regexp.MustCompile(`(?m)^y2026 +distrusted(.|\n)*^y2027 +active`).MatchString(said) {
		t.Errorf("it says\n%s", said)
	}
}

// logLife reads a log, copies it, lets another follow, freezes it, and restores it.
func logLife(t *testing.T, restore string) {
	dir, p, e := issuing(t, "my-ca")
	page := blocks(t, "docs/ctlog.md")
	run := func(script string, replace ...string) string {
		t.Helper()
		return shell(t, dir, strings.NewReplacer(append(replace, "/backup/", dir+"/")...).Replace(script))
	}
	awaits := func(what, script, want string) {
		t.Helper()
		if err := p.until(what, func() (bool, error) { return strings.Contains(shell(t, dir, script), want), nil }); err != nil {
			t.Fatal(err)
		}
	}
	awaits("the checkpoint covers the certificate", "curl -sf "+e.CTLog+"/checkpoint", "\n1\n")
	if out := run(page["run: read"], " 42 ", " 0 "); !strings.Contains(out, "names") || !strings.Contains(out, "c2sp.org/tlog-proof@v1") || !strings.Contains(out, "part of this log") {
		t.Errorf("show, proof and verify say\n%s", out)
	}
	if out := run(page["run: backup"]); !strings.Contains(out, "is whole") {
		t.Errorf("backup says\n%s", out)
	}
	soon := time.Now().Add(rotation.TakeUp + 5*time.Second).UTC().Format(time.RFC3339)
	if out := run(page["run: rotate"], "--yearly", "--force --at "+soon); !strings.Contains(out, " follows ") || !strings.Contains(out, "\nnext ") {
		t.Errorf("rotate and list say\n%s", out)
	}
	awaits("the log ends", "mayfly log list --config my-ca/mayfly.yaml", "\nended ")
	if out := run(page["run: freeze"]); !strings.Contains(out, "is frozen: 1 entries") {
		t.Errorf("freeze says\n%s", out)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
	shell(t, dir, "mv my-ca/ctlog lost")
	if out := run(restore); !strings.Contains(out, "The log of 1 entries is in my-ca/ctlog") {
		t.Errorf("restore says\n%s", out)
	}
}
