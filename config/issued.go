package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
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
		checkpoint := filepath.Join(string(log.Directory), "checkpoint")
		b, err := os.ReadFile(checkpoint)
		if lines := bytes.Split(b, []byte("\n")); err == nil && len(lines) > 1 && string(lines[1]) != "0" { // c2sp.org/tlog-checkpoint: origin, size
			return checkpoint
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
