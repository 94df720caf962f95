// Package config reads Mayfly's one configuration file. It composes the
// configuration of every package, decodes strictly, and reports all faults at
// once, each with its path and line. It reads the file that it is told and the
// state files named there, touches no network, and looks at no environment variable.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

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
	"github.com/mayfly-ca/mayfly/internal/tracing"
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
	// Tracing sends spans of requests to an OpenTelemetry collector ([watching.md](watching.md#traces)).
	Tracing tracing.Config `yaml:"tracing"`
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
		Tracing:   tracing.DefaultConfig(),
	}
}

// Load reads the file at path, and the state files that it names. The error is an
// *Error with all faults; when the file can't be read it wraps the cause, such as
// fs.ErrNotExist.
func Load(path string) (*Config, error) { return load(path, (*Config).readStates) }

// LoadDefinitions is Load without the state files.
func LoadDefinitions(path string) (*Config, error) { return load(path, withoutStates) }

func withoutStates(*Config, *strict.Document) {}

func load(path string, readStates func(*Config, *strict.Document)) (*Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the configuration file is missing: %w; name one with --config, or make one with mayfly init", err)
	}
	var data []byte
	if err == nil {
		defer f.Close()
		data, err = io.ReadAll(io.LimitReader(f, strict.MaxBytes+1))
	}
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("%s is a folder: name the configuration file in it, such as %s", path, filepath.Join(path, "mayfly.yaml"))
	case err != nil:
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := parse(data, filepath.Dir(path), readStates)
	var faults *Error
	if errors.As(err, &faults) {
		faults.File = path
	}
	return c, err
}

// parse decodes and checks a document whose relative paths begin at folder; an
// empty folder leaves them as they are. The error is an *Error.
func parse(data []byte, folder string, readStates func(*Config, *strict.Document)) (*Config, error) {
	c := Default()
	d, ok := strict.Decode(data, folder, c)
	if ok { // else the checks would only repeat it
		readStates(c, d)
		all := d.Faults
		for _, f := range c.check() {
			if !d.Faulty(f.Path) {
				f.Line = d.Line(f.Path)
				all = append(all, f)
			}
		}
		d.Faults = all
	}
	if !ok || len(d.Faults) > 0 {
		slices.SortStableFunc(d.Faults, func(a, b strict.Fault) int { return a.Line - b.Line })
		return nil, &Error{Faults: d.Faults}
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
	if all := c.check(); len(all) > 0 {
		return &Error{Faults: all}
	}
	return nil
}

// check collects what every section, and the sections together, find wrong.
func (c *Config) check() (all []strict.Fault) {
	f := new(setting.Faults)
	identity.CheckIssuers("issuers", c.Issuers, f)
	policy.Rules("deny", c.Deny, f)
	for name, section := range strict.Fields(reflect.ValueOf(c).Elem()) {
		if s, ok := section.Addr().Interface().(interface{ Check(string, *setting.Faults) }); ok {
			s.Check(name, f)
		}
	}
	c.crossCheck(f)
	var faults *setting.FaultError
	if errors.As(f.Err(), &faults) {
		for _, one := range faults.Faults {
			path, text, _ := strings.Cut(one, ": ")
			all = append(all, strict.Fault{Path: path, Text: text})
		}
	}
	return all
}

// Error is a configuration that can't be used, with every fault that was found,
// in the order of the document's lines.
type Error struct {
	// File is the configuration file, or empty.
	File   string
	Faults []strict.Fault
}

// Error is a headline and one indented line a fault.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	if len(e.Faults) == 1 {
		b.WriteString("1 fault in the configuration:")
	} else {
		fmt.Fprintf(&b, "%d faults in the configuration:", len(e.Faults))
	}
	for _, f := range e.Faults {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// Logging is the `logging` section: the service's own log, on standard error.
type Logging struct {
	// Level is the least severe level that is written: debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is `json`, one object a line, or `text` for people.
	Format string `yaml:"format"`
}

// levels are the names that Level takes.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// Check adds every fault of l.
func (l *Logging) Check(path string, f *setting.Faults) {
	if _, ok := levels[l.Level]; !ok {
		f.Add(setting.Join(path, "level"), "%q is unknown; debug, info, warn or error is expected", l.Level)
	}
	f.When(l.Format != "json" && l.Format != "text", setting.Join(path, "format"), "%q is unknown; json or text is expected", l.Format)
}

// Logger is the logger that l, which was checked, describes.
func (l *Logging) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: levels[strings.ToLower(l.Level)]}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// Marshal writes c as a document that Load reads back: only what differs from
// Default, with a comment above each path (`ca.authority`) that has one in
// comments; "" is the head of the document. Secrets are never in a Config, so
// none is written. It doesn't check c.
func Marshal(c *Config, comments map[string]string) ([]byte, error) {
	root, err := strict.Encode(*c, *Default(), "")
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	comment("", root, comments)
	var out bytes.Buffer
	if head := comments[""]; head != "" {
		// The blank line keeps the head apart from the comment of the first section.
		out.WriteString("# " + strings.ReplaceAll(head, "\n", "\n# ") + "\n\n")
	}
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(root), e.Close()); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return out.Bytes(), nil
}

// comment puts the comments above their keys and list items.
func comment(path string, n *yaml.Node, comments map[string]string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := setting.Join(path, n.Content[i].Value)
			n.Content[i].HeadComment = comments[at]
			comment(at, n.Content[i+1], comments)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item.HeadComment = comments[at]
			comment(at, item, comments)
		}
	}
}
