package ctlog

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

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
		if c.State.froze(log.URL) {
			f.Add(c.FrozenPath(path, i), "stands in state_file as well: remove it here")
		}
	}
	for _, log := range c.State.Logs {
		if known, twice := defined[trimmed(log.URL)]; twice {
			f.Add(setting.Join(path, known.at), "%s, the state_file, has the log %s as well: remove it here, or take it out of there", c.StateFile, log.URL)
		}
	}
}
