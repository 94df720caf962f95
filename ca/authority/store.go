package authority

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// stateVersion is the newest version of the state file, which has certificates.
// Without them it is of version 2, or of version 1 where it defines no authority
// either: older Mayflies read it.
const stateVersion = 3

// stateDocument is the state file: the states of authorities, each with its
// definition where the configuration doesn't define it.
type stateDocument struct {
	Version     int           `yaml:"version"`
	Authorities []NamedConfig `yaml:"authorities"`
}

// defined reports whether a says what its authority is, and not its state alone.
func (a *NamedConfig) defined() bool { return !reflect.ValueOf(a.Config).IsZero() }

// ReadStates reads a state file. A missing one has no states.
func ReadStates(path string) ([]NamedConfig, error) {
	var d stateDocument
	if err := statefile.Read(path, stateVersion, &d); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return d.Authorities, nil
}

func (d *stateDocument) check() error {
	for i, a := range d.Authorities {
		if a.Name == "" || indexOf(d.Authorities, a.Name) != i {
			return fmt.Errorf("has the authority %q twice, or one without a name", a.Name)
		}
		if d.Version == 1 && a.defined() {
			return fmt.Errorf("has version 1 and defines the authority %q, which begins with version 2", a.Name)
		}
		if d.Version < stateVersion && a.Certificate != "" {
			return fmt.Errorf("has version %d and the certificate of the authority %q, which begins with version %d", d.Version, a.Name, stateVersion)
		}
	}
	return nil
}

func indexOf(all []NamedConfig, name string) int {
	return slices.IndexFunc(all, func(a NamedConfig) bool { return a.Name == name })
}

// newStateDocument has the oldest version that can say all.
func newStateDocument(all []NamedConfig) *stateDocument {
	d := &stateDocument{Version: 1, Authorities: all}
	for _, a := range all {
		switch {
		case a.Certificate != "":
			d.Version = stateVersion
		case a.defined():
			d.Version = max(d.Version, 2)
		}
	}
	return d
}

// HaveSigned reports whether one of all has a state that says that it signs or once did.
func HaveSigned(all []NamedConfig) bool {
	return slices.ContainsFunc(all, func(a NamedConfig) bool { return a.HasSigned() })
}

// HasSigned reports whether an authority of s is known to sign, or to have signed.
func (s *Section) HasSigned() bool { return HaveSigned(s.All()) }

// ExportStates makes a state file, which must not be there yet, of the states that c
// has itself.
func ExportStates(c Section, path string) error {
	var all []NamedConfig
	for _, a := range c.Authorities {
		if a.State != "" {
			all = append(all, NamedConfig{Name: a.Name, Record: a.recorded(a.Record)})
		}
	}
	return statefile.Create(path, newStateDocument(all))
}

// recorded is r with the certificate that c has, where clients are told of it and r has
// none yet. A chain that can't be read has none; whoever loads it says why.
func (c *Config) recorded(r lifecycle.Record) lifecycle.Record {
	if !r.Listed() || r.Certificate != "" {
		return r
	}
	if b, err := os.ReadFile(string(c.Chain)); err == nil {
		if certs, err := chain.Parse(b); err == nil {
			r.Certificate = chain.Fingerprint(certs[0].Raw)
		}
	}
	return r
}

// Store has the authorities of a configuration and their states, for the one
// command that changes them.
type Store struct {
	Section Section
	Records []lifecycle.Entry // in the order of Section.All

	file *statefile.File
}

// OpenStore opens the state file that c names. A second command on it is refused.
func OpenStore(c Section) (_ *Store, err error) {
	s := &Store{Section: c}
	if s.file, err = statefile.Open(string(c.StateFile)); err != nil {
		return nil, err
	}
	// The states may have changed since the configuration was read.
	if s.Section.States, err = ReadStates(string(c.StateFile)); err == nil {
		s.Records, err = s.Section.Records()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets other commands change the states.
func (s *Store) Close() { s.file.Close() }

// Add defines another authority. The state file has it once it took a step.
func (s *Store) Add(a NamedConfig) error {
	if lifecycle.Find(s.Records, a.Name) >= 0 {
		return fmt.Errorf("there is an authority %q already", a.Name)
	}
	s.Section.States = append(slices.Clip(s.Section.States), a)
	s.Records = append(slices.Clip(s.Records), lifecycle.Entry{Name: a.Name})
	return nil
}

// Step takes a step and writes it down: all of it or nothing. The error of a key or
// a chain that can't sign is a *setting.FaultError; else it is that of [lifecycle.Do],
// or of the file.
func (s *Store) Step(ctx context.Context, name string, action lifecycle.Action, t lifecycle.Terms, o LoadOptions) error {
	next, err := lifecycle.Do(s.Records, name, action, t)
	if err != nil {
		return err
	}
	needsKey, err := lifecycle.NeedsKey(s.Records[lifecycle.Find(s.Records, name)], action)
	if err != nil {
		return err
	}
	if needsKey {
		a, err := LoadNamed(ctx, s.Section, name, o)
		if err != nil {
			return err
		}
		a.Close()
	}
	states, all := make([]NamedConfig, 0, len(next)), s.Section.All()
	for i, e := range next {
		next[i].Record = all[indexOf(all, e.Name)].recorded(e.Record)
		if e.State == "" {
			continue
		}
		kept := NamedConfig{Name: e.Name, Record: next[i].Record}
		if i := indexOf(s.Section.States, e.Name); i >= 0 {
			kept.Config = s.Section.States[i].Config
		}
		states = append(states, kept)
	}
	if err := s.file.Write(newStateDocument(states)); err != nil {
		return err
	}
	s.Records, s.Section.States = next, states
	return nil
}
