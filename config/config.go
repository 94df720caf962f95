// Package config reads Mayfly's one configuration file. It composes the
// configuration of every package, decodes strictly, and reports all faults at
// once, each with its path and line. It reads the file that it is told and the
// state files named there, touches no network, and looks at no environment variable.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/identity/replay"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/strict"
	"github.com/mayfly-ca/mayfly/server"
	"github.com/mayfly-ca/mayfly/server/page"
)

//go:generate go run -C ../internal/tools ./configdoc ../..

// Config is the whole configuration. Relative paths in it begin at the folder of the file.
type Config struct {
	// Server is where the service listens and what it lets a client use.
	Server server.Config `yaml:"server"`
	// Issuers lists the OpenID Connect issuers whose tokens are accepted; at least one.
	Issuers []identity.IssuerConfig `yaml:"issuers"`
	// Deny lists named rules that refuse requests of any issuer, above the
	// issuers' own conditions: for the hour after a compromise.
	Deny []policy.Deny `yaml:"deny,omitempty"`
	// Access says who may search and revoke.
	Access access.Config `yaml:"access,omitempty"`
	// Replay is where used tokens of issuers with one_time are remembered.
	Replay replay.Config `yaml:"replay"`
	// CA is the authority that signs, and its profile.
	CA ca.Config `yaml:"ca"`
	// Revocation is where single certificates are made invalid.
	Revocation revoke.Config `yaml:"revocation,omitempty"`
	// Timestamp is the timestamp authority, where this CA has one. With a timestamp, a
	// signature verifies after its certificate has expired.
	Timestamp timestamp.Config `yaml:"timestamp"`
	// CTLog is the Certificate Transparency log that every certificate goes into.
	CTLog ctlog.Config `yaml:"ctlog"`
	// Trust is what else clients are told to trust: services beside this CA.
	Trust trustroot.Config `yaml:"trust,omitempty"`
	// TUF is the signed repository from which clients get the trust root.
	TUF tuf.Config `yaml:"tuf"`
	// Store is the database of what was issued, for search. It is filled from the logs.
	Store store.Config `yaml:"store,omitempty"`
	// Page is the page for people: who got certificates, whom to trust, how the CA is.
	Page page.Config `yaml:"page,omitempty"`
	// Alerts tell people and programs of certificates that concern them.
	Alerts notify.Config `yaml:"alerts,omitempty"`
	// Audit is the audit trail.
	Audit audit.Config `yaml:"audit"`
	// Logging is the service's own log, on standard error.
	Logging Logging `yaml:"logging"`
}

// Default is the configuration that a file is decoded over. It can't be used as
// it is: issuers, keys, log and audit trail have no safe default.
func Default() *Config {
	return &Config{
		Server:    server.DefaultConfig(),
		Replay:    replay.DefaultConfig(),
		CA:        ca.DefaultConfig(),
		Timestamp: timestamp.DefaultConfig(),
		CTLog:     ctlog.DefaultConfig(),
		Audit:     audit.DefaultConfig(),
		Logging:   Logging{Level: "info", Format: "json"},
	}
}

// Load reads the file at path, and the state files that it names. The error is an
// *Error with all faults; when the file can't be read it wraps the cause, such as
// fs.ErrNotExist.
func Load(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	c, err := parse(data, filepath.Dir(path), (*Config).readStates)
	return c, inFile(path, err)
}

// LoadDefinitions is Load without the state files.
func LoadDefinitions(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(data, filepath.Dir(path))
	return c, inFile(path, err)
}

// inFile adds the name of the file to err's faults.
func inFile(path string, err error) error {
	var faults *Error
	if errors.As(err, &faults) {
		faults.File = path
	}
	return err
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the configuration file is missing: %w; name one with --config, or make one with mayfly init", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, strict.MaxBytes+1))
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("%s is a folder: name the configuration file in it, such as %s", path, filepath.Join(path, "mayfly.yaml"))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return data, nil
}

// Parse decodes and checks a document whose relative paths begin at folder; an
// empty folder leaves them as they are. It reads no state file. The error is an
// *Error.
func Parse(data []byte, folder string) (*Config, error) {
	return parse(data, folder, func(*Config, *strict.Document) {})
}

func parse(data []byte, folder string, readStates func(*Config, *strict.Document)) (*Config, error) {
	c := Default()
	d, ok := strict.Decode(data, folder, c)
	if !ok { // the checks would only repeat it
		return nil, &Error{Faults: sorted(d.Faults)}
	}
	readStates(c, d)
	all := d.Faults
	for _, f := range c.check() {
		path, text, _ := strings.Cut(f, ": ")
		if !d.Faulty(path) {
			all = append(all, strict.Fault{Path: path, Line: d.Line(path), Text: text})
		}
	}
	if len(all) > 0 {
		return nil, &Error{Faults: sorted(all)}
	}
	return c, nil
}

// readStates reads what commands decided.
func (c *Config) readStates(d *strict.Document) {
	var err error
	if path := string(c.CTLog.StateFile); path != "" && !d.Faulty("ctlog.state_file") {
		c.CTLog.State, err = ctlog.ReadState(path)
		name, folder := "", ""
		if _, missing := os.Stat(path); errors.Is(missing, fs.ErrNotExist) {
			name, folder = c.LostLogs()
		}
		switch {
		case name != "":
			d.Add("ctlog.state_file", 0, "%s is missing, but %s holds the log %s, which nothing else names: %s", path, folder, name, RestoreLogs)
		case err != nil:
			d.Add("ctlog.state_file", 0, "%v", err)
		}
	}
	if path := string(c.CA.StateFile); path != "" && !d.Faulty("ca.state_file") {
		if c.CA.States, err = authority.ReadStates(path); err != nil {
			d.Add("ca.state_file", 0, "%v", err)
		} else {
			c.checkLost(d)
		}
	}
}

// Check is nil where nothing is wrong with c, as after [Load]; else it is an *Error.
func (c *Config) Check() error {
	var all []strict.Fault
	for _, f := range c.check() {
		path, text, _ := strings.Cut(f, ": ")
		all = append(all, strict.Fault{Path: path, Text: text})
	}
	if len(all) == 0 {
		return nil
	}
	return &Error{Faults: all}
}

// check collects what every section, and the sections together, find wrong.
func (c *Config) check() []string {
	f := new(setting.Faults)
	c.Server.Check("server", f)
	identity.CheckIssuers("issuers", c.Issuers, f)
	identity.CheckDeny("deny", c.Deny, f)
	c.Access.Check("access", f)
	c.Replay.Check("replay", f)
	c.CA.Check("ca", f)
	c.Revocation.Check("revocation", f)
	c.Timestamp.Check("timestamp", f)
	c.CTLog.Check("ctlog", f)
	c.Trust.Check("trust", f)
	c.TUF.Check("tuf", f)
	c.Store.Check("store", f)
	c.Page.Check("page", f)
	c.Alerts.Check("alerts", f)
	c.Audit.Check("audit", f)
	c.Logging.Check("logging", f)
	c.crossCheck(f)
	var faults *setting.FaultError
	if errors.As(f.Err(), &faults) {
		return faults.Faults
	}
	return nil
}
