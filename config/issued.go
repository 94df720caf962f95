package config

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// issued is a file which shows that this CA has issued, or "" where nothing does:
// its audit trail has records, one of its logs has entries, or a history has
// issuing certificates. It tells a state file that was lost from one that was never there.
func (c *Config) issued() string {
	if file := audit.Begun(string(c.Audit.Path)); c.Audit.Path != "" && file != "" {
		return file
	}
	for _, log := range c.CTLog.Own() {
		if _, size := headOf(string(log.Directory)); size != "" && size != "0" {
			return checkpointOf(string(log.Directory))
		}
	}
	for _, a := range c.CA.All() {
		if a.Ephemeral.History == "" {
			continue
		}
		if all, err := filepath.Glob(filepath.Join(string(a.Ephemeral.History), "*.pem")); err == nil && len(all) > 0 {
			return all[0]
		}
	}
	return ""
}

// checkLost adds a fault where the states of authorities were lost: without them,
// whoever is activated next would be taken for the first that ever signs, of which
// clients need no notice, and the trusted root would list it alone.
func (c *Config) checkLost(d *strict.Document) {
	if c.CA.HasSigned() {
		return
	}
	if file := c.issued(); file != "" {
		lost := "names no authority that ever signed"
		if _, err := os.Stat(string(c.CA.StateFile)); errors.Is(err, os.ErrNotExist) {
			lost = "is missing"
		}
		d.Add("ca.state_file", 0, "%s %s, but %s shows that this CA has issued: restore it from a copy; where none was kept, "+
			"write the state and its times beside each of ca.authorities, have `mayfly config export-states` make the file of them, and take them out again",
			c.CA.StateFile, lost, file)
	}
}

// Lost is true where a state file of authorities can't be made of what c says: it
// states no authority that ever signed, and this CA has issued.
func (c *Config) Lost() bool { return !authority.HaveSigned(c.CA.Authorities) && c.issued() != "" }

// RestoreLogs is what to do where the state file of the logs was lost.
const RestoreLogs = "restore the file from a copy; where none was kept, write that log and the end of the one before it into the configuration " +
	"(ctlog.embedded.end, ctlog.shards, or ctlog.frozen once it is closed), have `mayfly config export-states` make the file of them, and take them out again"

// LostLogs names a log of this CA's that a rotation made and c doesn't define, and its
// folder, or "" where there is none: c has lost the state file of its logs. Rotations
// make a log beside the one before it.
func (c *Config) LostLogs() (name, folder string) {
	own := c.CTLog.Own()
	named := slices.Clip(own)
	for _, log := range c.CTLog.FrozenLogs() {
		named = append(named, ctlog.EmbeddedConfig{URL: log.URL})
	}
	for _, log := range own {
		host, _, _ := strings.Cut(log.Origin(), "/")
		parent := filepath.Dir(filepath.Clean(string(log.Directory)))
		beside, _ := os.ReadDir(parent) // what can't be read shows nothing
		for _, entry := range beside {
			folder := filepath.Join(parent, entry.Name())
			name, _ := headOf(folder)
			known := slices.ContainsFunc(named, func(l ctlog.EmbeddedConfig) bool { return l.Origin() == name })
			if !known && strings.HasPrefix(name, host+"/") {
				return name, folder
			}
		}
	}
	return "", ""
}

func checkpointOf(directory string) string { return filepath.Join(directory, "checkpoint") }

// headOf is the log's name and size by the checkpoint in its directory, or nothing:
// the first two lines (c2sp.org/tlog-checkpoint).
func headOf(directory string) (origin, size string) {
	f, err := os.Open(checkpointOf(directory))
	if err != nil {
		return "", ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 4<<10)) // whatever else is called so may be large
	lines := strings.SplitN(string(b), "\n", 3)
	if len(lines) < 3 {
		return "", ""
	}
	return lines[0], lines[1]
}
