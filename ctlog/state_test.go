package ctlog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

func logOf(year string, start, end time.Time) EmbeddedConfig {
	c := EmbeddedConfig{
		Directory: setting.Path("/srv/ctlog-" + year), MarkFile: setting.Path("/srv/ctlog-" + year + ".mark"),
		URL: "https://ca.example.com/ctlog/" + year, Key: setting.KeyRef("file:/srv/ctlog-" + year + ".key.pem"), Start: start, End: end,
	}
	c.SetDefaults()
	return c
}

// TestStateAndConfiguration: the logs in use are those of the configuration and of the
// state file together, and what both say is a fault.
func TestStateAndConfiguration(t *testing.T) {
	t.Parallel()
	year := func(n int) time.Time { return time.Date(n, 1, 1, 0, 0, 0, 0, time.UTC) }
	var none time.Time
	frozen := FrozenConfig{URL: "https://ca.example.com/ctlog/2026/", KeyFile: "/srv/2026.pub.pem", Start: year(2026), End: year(2027)}
	for name, tt := range map[string]struct {
		change func(*Config)
		urls   string // the years of the logs in use
		faults []string
	}{
		"a log follows": {func(*Config) {}, "2026 2027", nil},
		"the first is frozen": {func(c *Config) {
			c.State.Ends, c.State.Frozen = nil, []FrozenConfig{frozen}
		}, "2027", nil},
		"and gone from the configuration": {func(c *Config) {
			c.State.Ends, c.State.Frozen, c.Embedded = nil, []FrozenConfig{frozen}, DefaultConfig().Embedded
		}, "2027", nil},
		"a log in both": {func(c *Config) { c.Shards = c.State.Logs }, "2026 2027 2027",
			[]string{"ctlog.shards[0]: logs.json, the state_file, has the log"}},
		"frozen in both": {func(c *Config) {
			c.State.Ends, c.State.Frozen, c.Frozen = nil, []FrozenConfig{frozen}, []FrozenConfig{frozen}
		}, "2027", []string{"ctlog.frozen[0]: stands in state_file as well: remove it here"}},
		"frozen here, in use there": {func(c *Config) {
			c.Frozen = []FrozenConfig{{URL: c.State.Logs[0].URL, KeyFile: "k", End: year(2028)}}
		}, "2026 2027", []string{"ctlog.frozen[0]: logs.json, the state_file, has the log"}},
		"an end in both": {func(c *Config) { c.Embedded.End = year(2027) }, "2026 2027",
			[]string{"ctlog.embedded.end: stands in state_file as well: remove it here"}},
		"the end of no log": {func(c *Config) { c.State.Ends = append(c.State.Ends, End{"https://x.example", year(2027)}) }, "2026 2027",
			[]string{"ctlog.state_file: logs.json gives the log https://x.example an end, which ctlog doesn't define"}},
		"no end": {func(c *Config) { c.State.Ends = nil }, "2026 2027",
			[]string{"ctlog.embedded.end: required: ctlog.state_file.logs[0] follows it"}},
		"a bad log": {func(c *Config) { c.State.Logs[0].MarkFile = "" }, "2026 2027",
			[]string{"ctlog.state_file.logs[0].mark_file: required"}},
		"all frozen": {func(c *Config) { c.State.Logs, c.State.Ends, c.State.Frozen = nil, nil, []FrozenConfig{frozen} }, "",
			[]string{"ctlog.embedded: is frozen, and no log follows it"}},
		"another mode": {func(c *Config) { *c = Config{Mode: ModeNone, AcceptUnlogged: true, StateFile: "logs.json"} }, "",
			[]string{"ctlog.state_file: only goes with the mode embedded"}},
	} {
		c := DefaultConfig()
		c.Mode, c.StateFile, c.Embedded = ModeEmbedded, "logs.json", logOf("2026", year(2026), none)
		c.State = NewState()
		c.State.Logs, c.State.Ends = []EmbeddedConfig{logOf("2027", year(2027), none)}, []End{{c.Embedded.URL + "/", year(2027)}}
		tt.change(&c)
		var f setting.Faults
		c.Check("ctlog", &f)
		var urls []string
		for _, log := range c.Own() {
			urls = append(urls, filepath.Base(log.URL))
		}
		if got := strings.Join(urls, " "); got != tt.urls {
			t.Errorf("%s: the logs %s are in use, want %s", name, got, tt.urls)
		}
		text := ""
		if f.Len() > 0 {
			text = f.Err().Error()
		}
		for _, want := range tt.faults {
			if !strings.Contains("\n"+text, "\n"+want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		if len(tt.faults) == 0 && text != "" {
			t.Errorf("%s: %s", name, text)
		}
	}
}

func TestReadState(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "logs.json")
	if _, err := ReadState(path); err == nil || !strings.Contains(err.Error(), "is missing: restore it from a copy") {
		t.Errorf("a missing file: %v", err)
	}
	for text, says := range map[string]string{
		`{"version":1,"logs":[],"ends":[],"frozen":[]}`:                            "",
		`{"version":1,"logs":[],"ends":[]}`:                                        "frozen: is missing",
		`{"version":2,"logs":[],"ends":[],"frozen":[],"more":[]}`:                  "has version 2; this Mayfly knows those up to 1",
		`{"version":1,"logs":[{"URL":"x"}],"ends":[],"frozen":[]}`:                 "logs[0].URL: unknown field; did you mean url?",
		`{"version":1,"logs":[{"min_free_mb":0}],"ends":[],"ends":[],"frozen":[]}`: "ends: duplicate key",
		`{"version":1,"logs":[{"checkpoint_interval":1}],"ends":[],"frozen":[]}`:   "a duration with its unit",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadState(path); (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}

func FuzzState(f *testing.F) {
	s := NewState()
	s.Logs, s.Ends = []EmbeddedConfig{logOf("2027", time.Unix(1, 0).UTC(), time.Time{})}, []End{{"https://a.example", time.Unix(2, 0).UTC()}}
	s.Frozen = []FrozenConfig{{URL: "https://b.example", KeyFile: "/srv/b.pem"}}
	b, err := statefile.Format(s, "/srv")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, twice := new(State), new(State)
		if statefile.Parse(b, "/srv", stateVersion, s) != nil {
			return
		}
		again, err := statefile.Format(s, "/srv")
		if err != nil {
			t.Fatalf("read, but can't be written: %v", err)
		}
		if err := statefile.Parse(again, "/srv", stateVersion, twice); err != nil {
			t.Fatalf("%q is written as %q, which can't be read: %v", b, again, err)
		}
		c := Config{Mode: ModeEmbedded, StateFile: "logs.json", State: twice}
		var faults setting.Faults
		c.Check("ctlog", &faults)
		if len(s.Logs) != len(twice.Logs) {
			t.Fatal("logs are lost")
		}
	})
}
