package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// commented is valid with what an edit must leave alone.
var commented = strings.NewReplacer(
	"issuers:", "# Our CA. Ask ops@example.com.\n\nissuers: # who may log in",
	"    audiences: [sigstore]", "    audiences: ['sigstore',   \"b\" ] # two",
	"    start: 2026", "    # the log of 2026\n    start: 2026",
	"audit:", "# where the trail is\n\naudit:",
).Replace(valid)

var (
	newYear = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	retired = ctlog.FrozenConfig{URL: "https://ca.example.com/ctlog/2025", KeyFile: "2025.pem", End: newYear}
)

const retiredText = "url: https://ca.example.com/ctlog/2025\n        key_file: 2025.pem\n        end: 2027-01-01T00:00:00Z\n"

func TestEdit(t *testing.T) {
	t.Parallel()
	withFrozen := strings.Replace(commented, "ctlog:\n", "ctlog:\n  frozen:\n  # the first\n  -   url: https://a.example\n      key_file: a.pem\n"+
		"  # the second\n  - url: https://b.example # B\n    key_file: |\n      b.pem\n\n  # the end\n", 1)
	flow := strings.Replace(commented, "ctlog:\n", "ctlog:\n  frozen: [{url: 'https://a.example', key_file: a}, # A\n    {url: https://b.example, key_file: b} ] # B\n", 1)
	for name, c := range map[string]struct {
		text     string
		changes  []Change
		old, new string // the one place that differs
	}{
		"set a time":     {commented, []Change{Set("ctlog.embedded.start", newYear)}, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		"set text":       {commented, []Change{Set("ctlog.embedded.directory", "log: #/")}, "directory: log/", "directory: 'log: #/'"},
		"keep quotes":    {commented, []Change{Set("issuers[0].audiences[1]", `it's "a"`)}, `"b"`, `"it's \"a\""`},
		"quote a number": {commented, []Change{Set("issuers[0].audiences[0]", "5")}, `'sigstore'`, `'5'`},
		"add a setting": {commented, []Change{Set("ctlog.embedded.end", newYear)},
			"start: 2026-01-01T00:00:00Z\n", "start: 2026-01-01T00:00:00Z\n    end: 2027-01-01T00:00:00Z\n"},
		"add sections": {commented, []Change{Set("server.limits.streams", 7)}, "path: /var/log/audit.jsonl\n",
			"path: /var/log/audit.jsonl\nserver:\n  limits:\n    streams: 7\n"},
		"make a list": {commented, []Change{Append("ctlog.frozen", retired)},
			"start: 2026-01-01T00:00:00Z\n", "start: 2026-01-01T00:00:00Z\n  frozen:\n    - " + strings.ReplaceAll(retiredText, "        ", "      ")},
		"append": {withFrozen, []Change{Append("ctlog.frozen", retired)},
			"      b.pem\n", "      b.pem\n  - " + strings.ReplaceAll(retiredText, "        ", "    ")},
		"append in brackets": {flow, []Change{Append("ctlog.frozen", retired)}, "key_file: b}",
			"key_file: b}, {url: 'https://ca.example.com/ctlog/2025', key_file: 2025.pem, end: '2027-01-01T00:00:00Z'}"},
		"set in brackets":    {flow, []Change{Set("ctlog.frozen[1].operator", "B: x")}, "key_file: b}", "key_file: b, operator: 'B: x'}"},
		"set over lines":     {strings.Replace(withFrozen, "url: https://a.example", "url:\n        https://a.example", 1), []Change{Set("ctlog.frozen[0].url", "https://c.example")}, "https://a.example", "https://c.example"},
		"remove a setting":   {commented, []Change{Remove("ctlog.embedded.start")}, "    start: 2026-01-01T00:00:00Z\n", ""},
		"remove an entry":    {withFrozen, []Change{Remove("ctlog.frozen[0]")}, "  -   url: https://a.example\n      key_file: a.pem\n", ""},
		"remove the last":    {withFrozen, []Change{Remove("ctlog.frozen[1]")}, "  - url: https://b.example # B\n    key_file: |\n      b.pem\n", ""},
		"remove in brackets": {flow, []Change{Remove("ctlog.frozen[0]")}, "{url: 'https://a.example', key_file: a}, # A\n    ", ""},
		"remove the last in brackets": {flow, []Change{Remove("ctlog.frozen[1]")},
			", # A\n    {url: https://b.example, key_file: b}", ""},
		"remove all": {withFrozen, []Change{Remove("ctlog.frozen[0]"), Remove("ctlog.frozen[0]")},
			withFrozen[strings.Index(withFrozen, "  frozen:") : strings.Index(withFrozen, "\n  # the end")+1], "\n"},
		"several": {commented, []Change{Set("ctlog.embedded.start", newYear), Set("ctlog.embedded.end", newYear.AddDate(1, 0, 0))},
			"2026-01-01T00:00:00Z\n", "2027-01-01T00:00:00Z\n    end: 2028-01-01T00:00:00Z\n"},
		"no last new line": {strings.TrimSuffix(commented, "\n"), []Change{Set("audit.rotation.max_size_mb", 9)},
			"path: /var/log/audit.jsonl", "path: /var/log/audit.jsonl\n  rotation:\n    max_size_mb: 9"},
		"other line ends": {strings.ReplaceAll(commented, "\n", "\r\n"), []Change{Set("audit.rotation.max_size_mb", 9)},
			"path: /var/log/audit.jsonl\r\n", "path: /var/log/audit.jsonl\r\n  rotation:\r\n    max_size_mb: 9\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := write(t, c.text)
			if err := os.Chmod(path, 0o640); err != nil {
				t.Fatal(err)
			}
			if strings.Count(c.text, c.old) != 1 {
				t.Fatalf("%q is in the text %d times", c.old, strings.Count(c.text, c.old))
			}
			if err := Edit(path, c.changes...); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Replace(c.text, c.old, c.new, 1); string(got) != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
				t.Errorf("files left: %v, %v", left, err)
			}
		})
	}
}

// TestEditRefuses shows what is left alone, and that the person is told what to do.
func TestEditRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text    string
		changes []Change
		want    string
	}{
		"faults before":      {valid + "x: 1\n", []Change{Set("logging.level", "debug")}, "it has faults already: "},
		"faults after":       {valid, []Change{Set("logging.level", "loud")}, `logging.level: "loud" is unknown`},
		"unknown field":      {valid, []Change{Set("logging.colour", true)}, "logging.colour: unknown field"},
		"of another type":    {valid, []Change{Set("audit.path", 7)}, "audit.path: text is expected"},
		"one of two":         {valid, []Change{Set("logging.level", "debug"), Remove("nothing")}, "remove nothing: it isn't in the file"},
		"a section":          {valid, []Change{Set("ctlog.embedded", "x")}, "it is a list or a section"},
		"not a list":         {valid, []Change{Append("ctlog.embedded", retired)}, "it isn't a list"},
		"past the end":       {valid, []Change{Set("issuers[4].type", "uri")}, "it isn't in the file"},
		"no path":            {valid, []Change{Set("issuers[x]", 1)}, "is not the path of a setting"},
		"the whole document": {"logging: {level: info}\n", []Change{Remove("logging")}, "it has faults already"},
		// Only the proof notices that the blank lines are part of the value before.
		"blank lines that count": {strings.Replace(valid, "ctlog:\n", "ctlog:\n  frozen:\n  - url: https://b.example\n    key_file: |+\n      b.pem\n\n\n", 1),
			[]Change{Append("ctlog.frozen", retired)}, "only a person can edit"},
		"a first key": {valid, []Change{Remove("issuers[0].url")}, "only a person can edit"},
	} {
		path := write(t, c.text)
		err := Edit(path, c.changes...)
		var refused *EditError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
			continue
		}
		for _, change := range c.changes {
			if !strings.Contains(err.Error(), "\n  "+change.String()) {
				t.Errorf("%s: the error doesn't say how to make the change by hand: %v", name, err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != c.text {
			t.Errorf("%s: the file has changed to %s, %v", name, got, err)
		}
	}
}

func TestEditRefusesFiles(t *testing.T) {
	t.Parallel()
	change := Set("logging.level", "debug")
	path := write(t, valid)
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Edit(link, change); err == nil || !strings.Contains(err.Error(), "symbolic link") ||
		!strings.Contains(err.Error(), "set logging.level: debug") {
		t.Errorf("a symbolic link: %v", err)
	}
	if err := Edit(filepath.Dir(path), change); err == nil || !strings.Contains(err.Error(), "isn't a plain file") {
		t.Errorf("a folder: %v", err)
	}
	if err := Edit(path+".none", change); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := TryEdit(path, change); err != nil {
		t.Errorf("trying: %v", err)
	}
	held, _, err := openEditable(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Edit(path, change); err == nil || !strings.Contains(err.Error(), "another command is changing it") {
		t.Errorf("a locked file: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != valid {
		t.Errorf("the file has changed to %s, %v", got, err)
	}
}

// edits are changes of any document, each with what it means for the configuration.
var edits = []struct {
	change Change
	mean   func(*Config)
}{
	{Set("logging.level", "debug"), func(c *Config) { c.Logging.Level = "debug" }},
	{Set("ctlog.timeout", 7*time.Second), func(c *Config) { c.CTLog.Timeout = 7 * time.Second }},
	{Set("issuers[0].type", "uri"), func(c *Config) { c.Issuers[0].Type = "uri" }},
	{Set("ctlog.embedded.end", newYear), func(c *Config) { c.CTLog.Embedded.End = newYear }},
	{Append("ctlog.frozen", retired), func(c *Config) { c.CTLog.Frozen = append(slices.Clip(c.CTLog.Frozen), retired) }},
	{Append("issuers[0].audiences", "x: #"), func(c *Config) {
		c.Issuers[0].Audiences = append(slices.Clip(c.Issuers[0].Audiences), "x: #")
	}},
	{Remove("ctlog.frozen[0]"), func(c *Config) { c.CTLog.Frozen = c.CTLog.Frozen[1:] }},
	{Remove("issuers[1]"), func(c *Config) { c.Issuers = slices.Delete(slices.Clone(c.Issuers), 1, 2) }},
}

// FuzzEdit: whatever the document looks like, an edit that is made means what it
// should, touches one place, and is undone by putting the old bytes back there.
func FuzzEdit(f *testing.F) {
	for i := range edits {
		f.Add([]byte(valid), i)
		f.Add([]byte(commented), i)
		f.Add([]byte("{"+strings.ReplaceAll(strings.ReplaceAll(commented, "- url", "- # x\n    url"), "ctlog:\n", "ctlog:\n  frozen: []\n")+"}"), i)
		f.Add([]byte(valid+"logging: {level: \"in\\\n  fo\", # c\n  format: 'json'} # d\n"), i)
		f.Add([]byte(strings.Replace(valid, "ctlog:\n", "ctlog:\n  timeout: >-\n   6s\n\n  # x\n  frozen:\n  - key_file: a\n    url: https://a.example\n  - {url: https://a.example/b, key_file: ä}\n", 1)), i)
	}
	f.Fuzz(func(t *testing.T, text []byte, which int) {
		if which < 0 || which >= len(edits) {
			return
		}
		before, err := Parse(text, "")
		if err != nil {
			return
		}
		next, err := revise(text, "", []Change{edits[which].change})
		if err != nil {
			return
		}
		after, err := Parse(next, "")
		if err != nil {
			t.Fatalf("%v in\n%s", err, next)
		}
		want := before
		edits[which].mean(want)
		if len(want.CTLog.Frozen)+len(after.CTLog.Frozen) == 0 {
			want.CTLog.Frozen, after.CTLog.Frozen = nil, nil
		}
		if !reflect.DeepEqual(after, want) {
			t.Fatalf("%s means\n%+v\nwant\n%+v\nin\n%s", edits[which].change, after, want, next)
		}
		if edits[which].change.verb != verbAppend {
			return
		}
		same := 0
		for same < min(len(text), len(next)) && text[same] == next[same] {
			same++
		}
		if !bytes.HasSuffix(next, text[same:]) {
			t.Fatalf("more than an insertion: %q after %q", next, text)
		}
	})
}

func TestPaths(t *testing.T) {
	t.Parallel()
	// A path that is resolved on reading is written as it was given.
	path := write(t, valid)
	if err := Edit(path, Append("ctlog.frozen", ctlog.FrozenConfig{URL: "https://a.example", KeyFile: setting.Path("a.pem")})); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(c.CTLog.Frozen[0].KeyFile), filepath.Join(filepath.Dir(path), "a.pem"); got != want {
		t.Errorf("the path is %s, want %s", got, want)
	}
}
