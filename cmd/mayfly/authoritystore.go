package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
)

// exportStates is what to do where a configuration has states itself.
func exportStates(file string) string {
	return "run `mayfly config export-states --config " + file + "`: it makes the state file and says which lines of the configuration to change"
}

// namedAuthorities reads a configuration with authorities that have states.
func namedAuthorities(file string) (*config.Config, error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if len(c.CA.All()) == 0 {
		return nil, &failure{
			code: exitFailed, fix: "write it as the first of ca.authorities, with a name and `state: active`: docs/authorities.md",
			err: fmt.Errorf("%s has one authority, which is always active", file),
		}
	}
	return c, nil
}

// openAuthorities opens the store of a configuration's authorities, to change them.
func openAuthorities(file string) (*authority.Store, error) {
	c, err := namedAuthorities(file)
	if err != nil {
		return nil, err
	}
	if c.CA.StateFile == "" {
		return nil, &failure{
			code: exitFailed, fix: exportStates(file),
			err: fmt.Errorf("%s has the states of its authorities itself, and no command writes a configuration", file),
		}
	}
	s, err := authority.OpenStore(c.CA.Section)
	if err != nil {
		return nil, startFailure(err, "")
	}
	return s, nil
}

// takeStep takes a step and writes it down.
func takeStep(ctx context.Context, s *authority.Store, name string, action lifecycle.Action, t lifecycle.Terms) error {
	if lifecycle.Find(s.Records, name) < 0 {
		return usage("`mayfly authority list` shows those that there are; `prepare` with --chain and --key adds one", "there is no authority %q", name)
	}
	var none *lifecycle.NoStepError
	err := s.Step(ctx, name, action, t, authority.LoadOptions{Now: time.Now(), KMS: kms.Options{Logger: slog.New(slog.DiscardHandler)}})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lifecycle.ErrTooSoon):
		return &failure{code: exitFailed, fix: "wait, or see what --force risks: mayfly authority activate --help", err: err}
	case errors.As(err, &none):
		return &failure{code: exitFailed, fix: "`mayfly authority list` shows what can follow", err: err}
	}
	return startFailure(err, "")
}
