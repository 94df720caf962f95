package config

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// valid is a configuration without a fault; tests break copies of it.
const valid = `issuers:
  - url: https://accounts.example.com
    audiences: [sigstore]
    type: email
    allow: "true"
ca:
  authority:
    chain: chain.pem
    key: file:issuing.key.pem
ctlog:
  mode: embedded
  embedded:
    directory: log/
    mark_file: mark
    url: https://ca.example.com/ctlog/2026
    key: file:log.key.pem
    start: 2026-01-01T00:00:00Z
audit:
  path: /var/log/audit.jsonl
`

// Parse is Load of a document, without the state files.
func Parse(data []byte, folder string) (*Config, error) { return parse(data, folder, withoutStates) }

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mayfly.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadFillsDefaultsAndResolvesPaths(t *testing.T) {
	t.Parallel()
	path := write(t, valid)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if got := string(c.CA.Authority.Chain); got != filepath.Join(dir, "chain.pem") {
		t.Errorf("a relative path: %s", got)
	}
	if got := string(c.CA.Authority.Key); got != "file:"+filepath.Join(dir, "issuing.key.pem") {
		t.Errorf("a relative key: %s", got)
	}
	if got := string(c.Audit.Path); got != "/var/log/audit.jsonl" {
		t.Errorf("an absolute path: %s", got)
	}
	if c.CA.Lifetime != 10*time.Minute || c.Server.HTTPAddress != "127.0.0.1:5555" || c.Logging.Format != "json" ||
		c.CTLog.Embedded.CheckpointInterval != ctlog.DefaultCheckpointInterval {
		t.Errorf("defaults: %+v", c)
	}
	if !c.CTLog.Embedded.Start.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("start: %v", c.CTLog.Embedded.Start)
	}
}

// TestEveryFaultIsListed: a configuration with faults lists every one of
// them, with its path and line.
func TestEveryFaultIsListed(t *testing.T) {
	t.Parallel()
	replace := func(old, with string) string {
		if !strings.Contains(valid, old) {
			t.Fatalf("the valid configuration has no %q", old)
		}
		return strings.Replace(valid, old, with, 1)
	}
	tests := []struct {
		name, text string
		want       []string // every fault, in order, from its beginning
	}{
		{"empty file", "", []string{"the file is empty; "}},
		{"only comments", "# nothing\n", []string{"the file is empty; "}},
		{"only a separator", "---\n", []string{"the file is empty; "}},
		{"a list", "- a\n", []string{"a mapping is expected (access, alerts, audit, ca, ctlog, deny, issuers, logging, page, replay, revocation, server, store, timestamp, tracing, trust, tuf), not a list (line 1)"}},
		{"not YAML", "issuers: [\n", []string{"isn't YAML: "}},
		{"trailing document", valid + "---\nca: {}\n", []string{"a second document begins here; the file must hold one (line 20)"}},
		{"trailing bytes", valid + "...\n}\n", []string{"isn't YAML: "}},
		{"not UTF-8", valid + "# \xff\n", []string{"the file isn't UTF-8 text (line 20)"}},
		{"too large", valid + strings.Repeat("#", 1<<20), []string{"the file is larger than 1024 KiB"}},
		{"unknown field", replace("    type: email", "    type: email\n    audience: x"),
			[]string{"issuers[0].audience: unknown field; did you mean audiences? (line 5)"}},
		{"unknown section", valid + "loging: {}\n", []string{"loging: unknown field; did you mean logging? (line 20)"}},
		{"unknown field among few", valid + "logging: {colour: true}\n",
			[]string{"logging.colour: unknown field; known are format, level (line 20)"}},
		{"other ways to write a name", valid + "server:\n  httpAddress: x\n",
			[]string{"server.httpAddress: unknown field; did you mean http_address? (line 21)"}},
		{"duplicate key", replace("    type: email", "    type: email\n    type: email"),
			[]string{"issuers[0].type: duplicate key; it is on line 4 already (line 5)"}},
		{"duplicate section", valid + "audit:\n  path: x\n", []string{"audit: duplicate key; it is on line 18 already (line 20)"}},
		{"text for a list", replace("[sigstore]", "sigstore"), []string{"issuers[0].audiences: a list is expected, not this text (line 3)"}},
		{"number for text", replace("type: email", "type: 5"), []string{"issuers[0].type: text is expected, not this number; put it in quotes (line 4)"}},
		{"text for a number", valid + "server: {limits: {streams: many}}\n",
			[]string{"server.limits.streams: a whole number is expected, not this text (line 20)"}},
		{"a number too large", valid + "server: {limits: {streams: 99999999999999999999}}\n",
			[]string{"server.limits.streams: a whole number is expected, not this number (line 20)"}},
		{"yes for true", valid + "server: {}\n" + "logging: {level: yes}\n", []string{"logging.level: "}},
		{"duration without a unit", valid + "server: {request_timeout: 9}\n",
			[]string{"server.request_timeout: a duration with its unit, such as 10m or 1h30m, is expected, not this number (line 20)"}},
		{"bad duration", valid + "server: {request_timeout: ten minutes}\n",
			[]string{"server.request_timeout: a duration with its unit, such as 10m or 1h30m, is expected, not this text (line 20)"}},
		{"bad time", replace("2026-01-01T00:00:00Z", "2026-01-01"),
			[]string{"ctlog.embedded.start: a time such as 2027-01-01T00:00:00Z is expected, not a date (line 17)"}},
		{"no value", replace("chain: chain.pem", "chain:"), []string{"ca.authority.chain: has no value; give it one or remove the line (line 8)"}},
		{"a secret written out", replace("    key: file:issuing", "    passphrase: hunter2\n    key: file:issuing"),
			[]string{"ca.authority.passphrase: names where the secret is, `{env: VARIABLE}` or `{file: PATH}`; the secret itself is never written here (line 9)"}},
		{"a secret written out in a field", replace("    key: file:issuing", "    passphrase: {value: hunter2}\n    key: file:issuing"),
			[]string{"ca.authority.passphrase.value: unknown field; known are env, file (line 9)"}},
		{"two places of a secret", replace("    key: file:issuing", "    passphrase: {env: A, file: b}\n    key: file:issuing"),
			[]string{"ca.authority.passphrase: names both env and file"}},
		{"anchor and alias", replace("[sigstore]", "&a [sigstore]") + "logging: *a\n",
			[]string{"issuers[0].audiences: anchors and aliases", "logging: anchors and aliases"}},
		{"merge key", valid + "logging: {<<: {level: info}}\n", []string{"logging: a name is expected as the key"}},
		{"tag", replace("type: email", "type: !!str email"), []string{"issuers[0].type: tags are not supported"}},
		{"strange keys", valid + "1: x\n? [a]\n: y\n\"a\\e[31m\": z\n",
			[]string{"a name is expected", "a name is expected", "a\ufffd[31m: unknown field"}},
		{"two listeners on one address", valid + "server:\n  grpc_address: 127.0.0.1:5555\n", []string{"server.grpc_address: "}},
		{"an unlogged CA that nobody accepted", valid[:strings.Index(valid, "ctlog:")] + "ctlog: {mode: none}\naudit: {path: a}\n",
			[]string{"ctlog.accept_unlogged: "}},
		{"the backdate isn't within the lifetimes", strings.Replace(replace("    allow: \"true\"",
			"    allow: \"true\"\n    lifetime: 1m\n    profiles: [{name: p, when: \"true\", lifetime: 119s}, {name: q, when: \"true\", lifetime: 2m}]"), "ca:\n", "ca:\n  backdate: 1m\n", 1),
			[]string{"ca.backdate: 1m0s leaves less than half of issuers[0].lifetime, 1m0s, to sign in", "ca.backdate: 1m0s leaves less than half of issuers[0].profiles[0].lifetime, 1m59s"}},
		{"the backdate isn't a minute's", strings.Replace(valid, "ca:\n", "ca:\n  backdate: 61s\n", 1), []string{"ca.backdate: 1m1s is out of bounds: from 0s to 1m0s"}},
		{"a second log is never asked", valid[:strings.Index(valid, "ctlog:")] + "audit: {path: a}\nctlog:\n  mode: external\n  stagger: 8s\n  logs:\n" +
			"    - {url: https://a.example, key_file: a}\n    - {url: https://b.example, key_file: b}\n",
			[]string{"ctlog.stagger: 8s is no shorter than ctlog.timeout, 8s: a second log would never be asked"}},
		{"the log's time isn't within the request's", valid + "server: {request_timeout: 8s}\n", []string{"ctlog.timeout: "}},
		{"alerts without a store", "alerts:\n  rules:\n    - {name: r, event: certificate, targets: [t]}\n  targets:\n    - {name: t, slack: {env: X}}\n" + valid, []string{"alerts: needs store"}},
		{"one key for two", replace("file:log.key.pem", "file:issuing.key.pem"), []string{"ctlog.embedded.key: is an authority's key too"}},
		{"audit in the log", replace("/var/log/audit.jsonl", "log/audit.jsonl"), []string{"audit.path: is inside the log's directory"}},
		{"audit as mark", replace("/var/log/audit.jsonl", "mark"), []string{"audit.path: is the log's mark_file too"}},
		{"audit names a folder", replace("/var/log/audit.jsonl", "audit/"), []string{"audit.path: names a folder"}},
		{"bad rotation", valid + "  rotation: {max_size_mb: 0, max_backups: -1, max_age_days: -1}\n", []string{
			"audit.rotation.max_size_mb: is 0; 1 to 10240 (MiB) is expected (line 20)",
			"audit.rotation.max_backups: is negative", "audit.rotation.max_age_days: is negative"}},
		{"bad logging", valid + "logging: {level: loud, format: xml}\n", []string{
			`logging.level: "loud" is unknown; debug, info, warn or error is expected (line 20)`,
			`logging.format: "xml" is unknown; json or text is expected (line 20)`}},
		{"a shared memory of nothing", valid + "replay: {redis: {username: mayfly, key_prefix: \"a b\"}}\n", []string{
			"replay.redis.address: required with the other settings", "replay.redis.password: required with a username", "replay.redis.key_prefix: "}},
		{"two issuers with one URL", replace("ca:\n", "  - url: https://accounts.example.com\n    audiences: [sigstore]\n    type: email\n    allow: \"true\"\nca:\n"),
			[]string{`issuers[1].audiences[0]: "sigstore" is among the audiences of issuers[0] too`}},
		{"an issuer without an audience", replace("    audiences: [sigstore]\n", ""), []string{"issuers[0].audiences: required"}},
		{"a wrong section hides nothing else", "issuers: 5\nca: {lifetime: 1s}\nctlog: {mode: none, accept_unlogged: true}\naudit: []\n", []string{
			"ca.authority.chain: required", "ca.authority.key: required"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, tt.text)
			_, err := Load(path)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Load = %v", err)
			}
			var got []string
			for _, f := range e.Faults {
				got = append(got, f.String())
			}
			for _, want := range tt.want {
				if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
					t.Errorf("no fault %q in:\n%s", want, strings.Join(got, "\n"))
				}
			}
			if len(tt.want) != len(got) && tt.name != "a wrong section hides nothing else" {
				t.Errorf("%d faults, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			if text := err.Error(); !strings.HasPrefix(text, path+": ") || strings.Contains(text, "hunter2") {
				t.Errorf("the error names no file, or a secret: %s", text)
			}
		})
	}
}

func TestEveryFaultAtOnceInTheOrderOfLines(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte(`server:
  http_addr: 127.0.0.1:1
  request_timeout: soon
issuers: nobody
ca:
  authority: {key: file:k}
  lifetime: 2h
ctlog:
  mode: nowhere
logging:
  level: loud
`), "")
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("Parse = %v", err)
	}
	want := []struct {
		path string
		line int
	}{
		{"audit.path", 0}, {"server.http_addr", 2}, {"server.request_timeout", 3}, {"issuers", 4},
		{"ca.authority.chain", 6}, {"ca.lifetime", 7}, {"ctlog.mode", 9}, {"logging.level", 11},
	}
	if len(e.Faults) != len(want) {
		t.Fatalf("%v", err)
	}
	for i, w := range want {
		if f := e.Faults[i]; f.Path != w.path || f.Line != w.line {
			t.Errorf("fault %d is at %s, line %d; want %s, line %d", i, f.Path, f.Line, w.path, w.line)
		}
	}
	if !strings.HasPrefix(err.Error(), "8 faults in the configuration:\n  audit.path: required") {
		t.Errorf("%v", err)
	}
}

func TestLoadNamesAFileThatCannotBeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("missing: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder: %v", err)
	}
}

func TestAliasesAreNeverExpanded(t *testing.T) {
	t.Parallel()
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+p+",", 8) + "*" + p + "]\n"
	}
	if _, err := Parse([]byte(bomb), ""); err == nil {
		t.Error("accepted")
	}
	if _, err := Parse([]byte("issuers: "+strings.Repeat("[", 500_000)), ""); err == nil {
		t.Error("deep nesting accepted")
	}
}

func TestShippedConfigurationsLoad(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mayfly.minimal.yaml", "mayfly.example.yaml"} {
		c, err := Load(filepath.Join("..", "deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Issuers) == 0 || c.CTLog.Mode != ctlog.ModeEmbedded {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestTheAlternativesOfTheExampleLoad takes the comment signs from the options
// that the example shows as alternatives or defaults.
func TestTheAlternativesOfTheExampleLoad(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "deploy", "mayfly.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		bare := strings.TrimLeft(line, " ")
		option, commented := strings.CutPrefix(bare, "# ")
		name, _, _ := strings.Cut(strings.TrimLeft(option, " -"), ":")
		switch {
		case commented && strings.Contains(option, ":") && name == strings.ToLower(name) && !strings.Contains(name, " ") && !strings.HasPrefix(option, "env:"):
			out = append(out, strings.Repeat(" ", len(line)-len(bare))+option)
		case !commented:
			out = append(out, line)
		}
	}
	text := strings.Join(out, "")
	from, to := strings.Index(text, "  mode: embedded"), strings.Index(text, "  mode: external")
	if from < 0 || to < 0 {
		t.Fatal("the example doesn't show both modes")
	}
	if _, err := Parse([]byte(text[:from]+text[to:]), ""); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{"json": `"msg":"hello"`, "text": "msg=hello"} {
		var b strings.Builder
		l := (&Logging{Level: "warn", Format: format}).Logger(&b)
		l.Info("hidden")
		l.Warn("hello")
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "hidden") || !l.Enabled(t.Context(), slog.LevelWarn) {
			t.Errorf("%s: %s", format, b.String())
		}
	}
}

func TestMarshalIsReadBack(t *testing.T) {
	t.Parallel()
	c, err := Parse([]byte(valid), "")
	if err != nil {
		t.Fatal(err)
	}
	c.CA.Authority.Passphrase = setting.Secret{Env: "PASS"}
	c.CA.Lifetime = 5 * time.Minute
	b, err := Marshal(c, map[string]string{"": "Made by a test.", "ca.authority.key": "Keep it.", "issuers[0]": "People."})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Made by a test.\n\n", "    # Keep it.\n    key: file:issuing.key.pem\n", "  # People.\n", "lifetime: 5m0s"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	for _, left := range []string{"server:", "logging:", "rotation:", "stagger"} {
		if strings.Contains(string(b), left) {
			t.Errorf("a default is written, %s, in\n%s", left, b)
		}
	}
	again, err := Parse(b, "")
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	if b2, err := Marshal(again, nil); err != nil || !strings.HasSuffix(stripComments(string(b)), stripComments(string(b2))) {
		t.Errorf("not the same: %v\n%s\n%s", err, b, b2)
	}
}

func stripComments(s string) string {
	var kept []string
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") && strings.TrimSpace(line) != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	for _, s := range []string{"", "a: &a [*a]\n", "issuers: [{}]\n", "? [x]\n: y\n", "ca: {authority: {key: file:}}\n",
		"\xef\xbb\xbfca: {}\n", "--- |\n x\n", "%YAML 1.2\n---\na: b\n", "ctlog: {logs: [{start: 2026-01-01}]}\n", "issuers:\n  - inline_preset: {variables: {x: [{}]}}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "/etc/mayfly")
		if (c == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", c, err)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || len(e.Faults) == 0) {
			t.Fatalf("an error without faults: %v", err)
		}
		if err == nil {
			if _, err := Marshal(c, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A section that doesn't check itself would be taken as it is.
func TestEverySectionChecksItself(t *testing.T) {
	t.Parallel()
	for name, section := range strict.Fields(reflect.ValueOf(Default()).Elem()) {
		if _, ok := section.Addr().Interface().(interface{ Check(string, *setting.Faults) }); !ok && name != "issuers" && name != "deny" {
			t.Errorf("%s has no Check", name)
		}
	}
}
