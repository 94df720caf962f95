package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/filelock"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// ledger is where the states of a configuration's authorities are kept.
type ledger struct {
	file    string
	config  *config.Config
	records []lifecycle.Entry
	lock    *os.File // of the folder of what has the states
}

// openLedger reads a configuration and its states. Of two commands on one state
// file, or on one configuration that has the states itself, the second is refused.
func openLedger(file string) (_ *ledger, err error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if len(c.CA.Authorities) == 0 {
		return nil, &failure{
			code: exitFailed, mend: "write it as the first of ca.authorities, with a name and `state: active`: docs/authorities.md",
			err: fmt.Errorf("%s has one authority, which is always active", file),
		}
	}
	l := &ledger{file: file, config: c}
	state := cmp.Or(string(c.CA.StateFile), file)
	if l.lock, err = os.Open(filepath.Dir(state)); err != nil {
		return nil, err
	}
	if err := filelock.Take(l.lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another command is changing it: %w", state, err), l.lock.Close())
	}
	if c.CA.StateFile == "" { // the states may have changed before the lock was taken
		if l.config, err = loadConfig(file); err != nil {
			l.close()
			return nil, err
		}
	}
	if l.records, err = l.config.CA.Records(); err != nil {
		l.close()
		return nil, startFailure(err, "")
	}
	return l, nil
}

func (l *ledger) close() {
	if l.lock != nil {
		_ = l.lock.Close() // and with it the lock; nothing is written through it
		l.lock = nil
	}
}

// add appends an authority to the configuration, once its key and chain are known
// to be good, and gives the ledger with it.
func (l *ledger) add(ctx context.Context, named authority.NamedConfig) (*ledger, error) {
	if lifecycle.Find(l.records, named.Name) >= 0 {
		return l, usage("leave out --chain and --key, or choose another name", "the configuration has an authority %q already", named.Name)
	}
	c := l.config.CA
	c.Authorities = append(c.Authorities[:len(c.Authorities):len(c.Authorities)], named)
	if err := checkAuthority(ctx, c.Section, named.Name); err != nil {
		if f := (*failure)(nil); errors.As(err, &f) {
			f.mend = "correct --chain, --key or what belongs to the key; the configuration is as it was"
		}
		return l, err
	}
	if err := config.Edit(l.file, config.Append("ca.authorities", named)); err != nil {
		return l, err
	}
	l.close()
	again, err := openLedger(l.file)
	if err != nil {
		return l, err
	}
	return again, nil
}

// checkAuthority opens the authority as a service that signs with it would.
func checkAuthority(ctx context.Context, s authority.Section, name string) error {
	a, err := authority.LoadNamed(ctx, s, name, authority.LoadOptions{Now: time.Now(), KMS: kms.Options{Logger: slog.New(slog.DiscardHandler)}})
	if err != nil {
		return startFailure(err, "")
	}
	a.Close()
	return nil
}

// step takes a step and writes it down.
func (l *ledger) step(ctx context.Context, name string, action lifecycle.Action, t lifecycle.Terms) error {
	const mend = "`mayfly authority list` shows what can follow"
	i := lifecycle.Find(l.records, name)
	if i < 0 {
		return usage("`mayfly authority list` shows those that there are; `prepare` with --chain and --key adds one", "%s has no authority %q", l.file, name)
	}
	needsKey, err := lifecycle.NeedsKey(l.records[i], action)
	if err != nil {
		return &failure{code: exitFailed, mend: mend, err: err}
	}
	next, err := lifecycle.Do(l.records, name, action, t)
	switch {
	case errors.Is(err, lifecycle.ErrTooSoon):
		return &failure{code: exitFailed, mend: "wait, or see what --force risks: mayfly authority activate --help", err: err}
	case err != nil:
		return &failure{code: exitFailed, mend: mend, err: err}
	}
	if needsKey {
		if err := checkAuthority(ctx, l.config.CA.Section, name); err != nil {
			return err
		}
	}
	return l.write(next)
}

// write keeps next: all of it or nothing.
func (l *ledger) write(next []lifecycle.Entry) error {
	var err error
	if state := string(l.config.CA.StateFile); state != "" {
		kept := make([]lifecycle.Entry, 0, len(next))
		for _, e := range next {
			if e.State != "" {
				kept = append(kept, e)
			}
		}
		err = lifecycle.Write(state, kept)
	} else {
		err = config.Edit(l.file, changes(l.records, next)...)
	}
	if err != nil {
		return err
	}
	l.records = next
	return nil
}

// changes are what differs in the configuration.
func changes(before, after []lifecycle.Entry) []config.Change {
	var all []config.Change
	for i := range after {
		at := setting.Index("ca.authorities", i)
		b, a := before[i], after[i]
		for _, field := range []struct {
			name     string
			old, new any
			gone     bool
		}{
			{"state", string(b.State), string(a.State), a.State == ""},
			{"prepared", b.Prepared, a.Prepared, a.Prepared.IsZero()},
			{"published", b.Published, a.Published, a.Published.IsZero()},
			{"activated", b.Activated, a.Activated, a.Activated.IsZero()},
			{"retired", b.Retired, a.Retired, a.Retired.IsZero()},
			{"distrusted", b.Distrusted, a.Distrusted, a.Distrusted.IsZero()},
			{"forced", b.Forced, a.Forced, a.Forced == ""},
		} {
			switch {
			case field.old == field.new:
			case field.gone:
				all = append(all, config.Remove(setting.Join(at, field.name)))
			default:
				all = append(all, config.Set(setting.Join(at, field.name), field.new))
			}
		}
	}
	return all
}
