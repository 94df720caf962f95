package ctlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// DefaultPropagation is how long clients get to fetch a trusted root with a new
// log in it before the log's first SCT.
const DefaultPropagation = 24 * time.Hour

// Own are the logs inside this process in the order in which they follow each
// other: the one under `embedded`, then `shards`, then those of the state file, with
// the ends that it gives and without those that it has frozen. It is empty in other
// modes.
func (c *Config) Own() []EmbeddedConfig {
	var all []EmbeddedConfig
	for _, l := range c.own() {
		all = append(all, l.log)
	}
	return all
}

// OwnPath is where the configuration has the log that is i in [Config.Own], as faults state it.
func (c *Config) OwnPath(path string, i int) string { return setting.Join(path, c.own()[i].at) }

// placed is a log and where it is defined.
type placed struct {
	at  string
	log EmbeddedConfig
}

func (c *Config) own() []placed {
	if c.Mode != ModeEmbedded {
		return nil
	}
	var all []placed
	add := func(at string, log EmbeddedConfig) {
		if !c.State.froze(log.URL) {
			log.End = c.State.end(log)
			all = append(all, placed{at, log})
		}
	}
	if c.Embedded.named() {
		add("embedded", c.Embedded)
	}
	for i, log := range c.Shards {
		add(setting.Index("shards", i), log)
	}
	if c.State != nil {
		for i, log := range c.State.Logs {
			add(setting.Index("state_file.logs", i), log)
		}
	}
	return all
}

// FrozenLogs are the frozen logs of the configuration and of the state file.
func (c *Config) FrozenLogs() []FrozenConfig {
	if c.State == nil {
		return c.Frozen
	}
	return append(slices.Clip(c.Frozen), c.State.Frozen...)
}

// FrozenPath is where the configuration has the log that is i in [Config.FrozenLogs].
func (c *Config) FrozenPath(path string, i int) string {
	if n := len(c.Frozen); i >= n {
		return setting.Index(setting.Join(path, "state_file.frozen"), i-n)
	}
	return setting.Index(setting.Join(path, "frozen"), i)
}

// named reports whether a log is configured here at all, well or not.
func (c *EmbeddedConfig) named() bool {
	return c.Directory != "" || c.MarkFile != "" || c.URL != "" || c.Key != ""
}

// SetDefaults fills in what a log means without saying it.
func (c *EmbeddedConfig) SetDefaults() {
	c.CheckpointInterval, c.MinFreeMB, c.VerifyInterval = DefaultCheckpointInterval, DefaultMinFreeMB, DefaultVerifyInterval
}

// checkOwn adds the faults of each of our logs, and of how they follow each other.
func (c *Config) checkOwn(path string, f *setting.Faults) {
	own := c.Own()
	if len(own) == 0 && (c.StateFile == "" || c.State != nil) { // else nobody has read them
		c.Embedded.Check(setting.Join(path, "embedded"), f)
		f.When(c.State.froze(c.Embedded.URL), setting.Join(path, "embedded"), "is frozen, and no log follows it")
	}
	for i := range own {
		at := c.OwnPath(path, i)
		own[i].Check(at, f)
		if i > 0 {
			checkSequel(at, c.OwnPath(path, i-1), &own[i-1], &own[i], f)
		}
		for j := range i {
			checkApart(at, c.OwnPath(path, j), &own[j], &own[i], f)
		}
	}
}

// checkSequel wants a log to begin at the moment when the one before it ends: two at
// once would leave open which one an SCT is from, none would stop the CA.
func checkSequel(at, earlier string, before, after *EmbeddedConfig, f *setting.Faults) {
	const layout = time.RFC3339
	switch {
	case after.Start.IsZero():
		f.Add(setting.Join(at, "start"), "required: the moment when it follows %s", earlier)
	case before.End.IsZero():
		f.Add(setting.Join(earlier, "end"), "required: %s follows it at %s", at, after.Start.Format(layout))
	case after.Start.Before(before.End):
		f.Add(setting.Join(at, "start"), "is before the end of %s, %s; at each moment one log takes certificates", earlier, before.End.Format(layout))
	case after.Start.After(before.End):
		f.Add(setting.Join(at, "start"), "is after the end of %s, %s; between them no certificate could be issued", earlier, before.End.Format(layout))
	}
}

// checkApart wants two logs to share nothing.
func checkApart(at, other string, a, b *EmbeddedConfig, f *setting.Faults) {
	const shared, within = "is that of %s; each log has its own", "or that of %s is inside the other log's directory"
	s := setting.Section{Path: at, Faults: f}
	s.Wrong(b.URL != "" && trimmed(a.URL) == trimmed(b.URL), "url", shared, other)
	s.Wrong(b.Key != "" && a.Key == b.Key, "key", shared, other)
	s.Wrong(b.MarkFile != "" && filepath.Clean(string(a.MarkFile)) == filepath.Clean(string(b.MarkFile)), "mark_file", shared, other)
	s.Wrong(a.Directory.Inside(b.Directory) || b.Directory.Inside(a.Directory), "directory", shared, other)
	s.Wrong(b.MarkFile.Inside(a.Directory) || a.MarkFile.Inside(b.Directory), "mark_file", within, other)
}

func trimmed(url string) string { return strings.TrimSuffix(url, "/") }

// CheckReload adds a fault for each way in which the logs of next can't follow
// those of c in a running service. They can in these: a log is added that begins
// later; the end of a log moves, from one moment to come to another; a log that has
// ended becomes a frozen one. Frozen logs may come and go.
func (c *Config) CheckReload(path string, next *Config, now time.Time, f *setting.Faults) {
	if c.Mode != ModeEmbedded || next.Mode != ModeEmbedded {
		return // the comparison of single settings says it all
	}
	was := make(map[string]EmbeddedConfig)
	for _, log := range c.Own() {
		was[trimmed(log.URL)] = log
	}
	for i, log := range next.Own() {
		at := next.OwnPath(path, i)
		old, known := was[trimmed(log.URL)]
		delete(was, trimmed(log.URL))
		if !known {
			f.When(!log.Start.After(now), setting.Join(at, "start"), "is past; a log that a running service takes up begins later, when clients know it")
			continue
		}
		if !old.End.Equal(log.End) && (ended(old.End, now) || ended(log.End, now)) {
			f.Add(setting.Join(at, "end"), "can't move from or to a moment that is past: it would leave SCTs outside of the log's time")
		}
		old.End = log.End
		f.When(!old.Start.Equal(log.Start) || !reflect.DeepEqual(normal(old), normal(log)), at, "can't change while the service runs, but for its end; restart it, or put the old values back")
	}
	for url, log := range was {
		frozen := slices.ContainsFunc(next.FrozenLogs(), func(l FrozenConfig) bool { return trimmed(l.URL) == url })
		f.When(!frozen || !ended(log.End, now), path, "the log %s can't go while the service runs: only one that has ended does, to ctlog.frozen", log.URL)
	}
}

// normal is c without what reads the same in another form.
func normal(c EmbeddedConfig) EmbeddedConfig {
	c.Start, c.End, c.URL = time.Time{}, time.Time{}, trimmed(c.URL)
	return c
}

func ended(end, now time.Time) bool { return !end.IsZero() && !end.After(now) }

// stateVersion is that of the state file's form.
const stateVersion = 1

// State is the state file: what commands decided about the logs of this process.
type State struct {
	Version int `yaml:"version"`
	// Logs follow those of the configuration.
	Logs []EmbeddedConfig `yaml:"logs"`
	// Ends are those of logs that the configuration defines.
	Ends []End `yaml:"ends"`
	// Frozen are closed logs. One that the configuration still defines isn't in use.
	Frozen []FrozenConfig `yaml:"frozen"`
}

// End is the end of the log called URL.
type End struct {
	URL string    `yaml:"url"`
	End time.Time `yaml:"end"`
}

// NewState is the state of logs that no command has touched.
func NewState() *State { return &State{Version: stateVersion} }

// ReadState reads a state file. One that is missing is an error: without it an old
// log would take certificates again.
func ReadState(path string) (*State, error) {
	s := new(State)
	err := statefile.Read(path, stateVersion, s)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: restore it from a copy; where no log was ever rotated, `mayfly config export-states` makes it", path)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// froze reports whether the log called url is closed.
func (s *State) froze(url string) bool {
	return s != nil && slices.ContainsFunc(s.Frozen, func(l FrozenConfig) bool { return trimmed(l.URL) == trimmed(url) })
}

// end is the end of a log, which its definition has or the state.
func (s *State) end(log EmbeddedConfig) time.Time {
	if s != nil {
		for _, e := range s.Ends {
			if trimmed(e.URL) == trimmed(log.URL) {
				return e.End
			}
		}
	}
	return log.End
}

// checkState adds what the state file and the configuration can't both say.
func (c *Config) checkState(path string, f *setting.Faults) {
	if c.State == nil {
		return
	}
	type place struct {
		at  string
		end time.Time
	}
	at := setting.Join(path, "state_file")
	defined := make(map[string]place) // in the configuration itself
	if c.Embedded.named() {
		defined[trimmed(c.Embedded.URL)] = place{"embedded", c.Embedded.End}
	}
	for i, log := range c.Shards {
		defined[trimmed(log.URL)] = place{setting.Index("shards", i), log.End}
	}
	for _, e := range c.State.Ends {
		switch known, ok := defined[trimmed(e.URL)]; {
		case !ok:
			f.Add(at, "%s gives the log %s an end, which %s doesn't define: put it back, or take its end out of there", c.StateFile, e.URL, path)
		case !known.end.IsZero():
			f.Add(setting.Join(setting.Join(path, known.at), "end"), "stands in state_file as well: remove it here")
		}
	}
	for i, log := range c.Frozen {
		defined[trimmed(log.URL)] = place{setting.Index("frozen", i), log.End}
		f.When(c.State.froze(log.URL), c.FrozenPath(path, i), "stands in state_file as well: remove it here")
	}
	for _, log := range c.State.Logs {
		if known, twice := defined[trimmed(log.URL)]; twice {
			f.Add(setting.Join(path, known.at), "%s, the state_file, has the log %s as well: remove it here, or take it out of there", c.StateFile, log.URL)
		}
	}
}
