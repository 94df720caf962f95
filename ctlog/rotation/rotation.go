// Package rotation lets one embedded log follow another: [Plan] names the next log
// and says when it begins, [Store.Create] makes it, [VerifyComplete] finds that an ended log
// holds all that it promised, and [Store.Freeze] closes it for good. What was decided
// is kept in the state file of the logs (ctlog.Config.StateFile).
package rotation

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// Kind is what kind of answer a Refusal is.
type Kind int

// The kinds.
const (
	NotNow     Kind = iota // the logs, or the time, don't allow it
	Misasked               // it was asked for in a way that can't be
	Unverified             // a log isn't what it has to be
)

// Refusal is why a step can't be taken, and what to do.
type Refusal struct {
	Kind Kind
	Fix  string // an imperative sentence without a full stop
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap is the reason.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(kind Kind, fix, format string, args ...any) error {
	return &Refusal{Kind: kind, Fix: fix, Err: fmt.Errorf(format, args...)}
}

// Store has the logs of a configuration, for the one command that changes them.
type Store struct {
	Config ctlog.Config

	check func(ctlog.Config) error
	file  *statefile.File
}

// Open opens the state file that c names. A second command on it is refused. check
// tells whether the whole configuration is good with other logs; nothing is written
// that it refuses.
func Open(c ctlog.Config, check func(ctlog.Config) error) (_ *Store, err error) {
	s := &Store{Config: c, check: check}
	if s.file, err = statefile.Open(string(c.StateFile)); err != nil {
		return nil, err
	}
	// The state may have changed since the configuration was read.
	if s.Config.State, err = ctlog.ReadState(string(c.StateFile)); err == nil {
		err = check(s.Config)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets other commands change the logs.
func (s *Store) Close() { s.file.Close() }

// with is the configuration with another state, and whether that is good.
func (s *Store) with(next *ctlog.State) (ctlog.Config, error) {
	c := s.Config
	c.State = next
	if err := s.check(c); err != nil {
		return c, fmt.Errorf("the logs would have faults: %w", err)
	}
	return c, nil
}

// write keeps next: all of it or nothing.
func (s *Store) write(next *ctlog.State) error {
	c, err := s.with(next)
	if err != nil {
		return err
	}
	if err := s.file.Write(next); err != nil {
		return err
	}
	s.Config = c
	return nil
}

// clone is a state whose lists can be changed.
func clone(s *ctlog.State) *ctlog.State {
	return &ctlog.State{Version: s.Version, Logs: slices.Clone(s.Logs), Ends: slices.Clone(s.Ends), Frozen: slices.Clone(s.Frozen)}
}

// same reports whether two URLs are of one log.
func same(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }

// Export makes a state file, which must not be there yet, of the states that c has
// itself: its shards, its frozen logs and the end of the first log.
func Export(c ctlog.Config, path string) error {
	next := ctlog.NewState()
	next.Logs, next.Frozen = c.Shards, c.Frozen
	if !c.Embedded.End.IsZero() {
		next.Ends = []ctlog.End{{URL: c.Embedded.URL, End: c.Embedded.End}}
	}
	return statefile.Create(path, next)
}
