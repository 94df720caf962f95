package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// indexInterval is how often logs are looked at for the index, and how long a store
// that can't be opened is left alone.
const (
	indexInterval = time.Second
	storeInterval = 10 * time.Second
)

// startIndex prepares the index, where the configuration has a store. Nothing is opened
// yet: a store that is down keeps no CA from issuing.
func (s *Service) startIndex(_ context.Context, first *state) (err error) {
	if !first.config.Store.Enabled() {
		return nil
	}
	s.index = index.New()
	s.follower, err = follow.New(s.monitored(first), follow.Options{
		Keeper: s.index, Evidence: filepath.Join(filepath.Dir(string(first.config.Audit.Path)), "evidence"),
		Interval: indexInterval, Logger: s.Logger, Metrics: s.Registry, Now: s.Now,
	})
	return err
}

// runIndex opens the store, as soon as that is possible, and fills it until ctx ends.
func (s *Service) runIndex(ctx context.Context) error {
	for said := ""; ; {
		db, err := store.Open(ctx, s.started.Store)
		if err == nil {
			if err = errors.Join(s.alerts.Open(ctx, db), s.index.Open(ctx, db)); err == nil {
				group, running := errgroup.WithContext(ctx)
				group.Go(func() error { return s.follower.Run(running) })
				group.Go(func() error { return s.alerts.Run(running) })
				return errors.Join(group.Wait(), db.Close())
			}
			err = errors.Join(err, db.Close())
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the service ends
		}
		if text := err.Error(); text != said {
			said = text
			s.Logger.LogAttrs(ctx, slog.LevelError, "the index can't be opened: nothing can be searched, and all else goes on", slog.Any("error", err))
		}
		if wait.For(ctx, storeInterval) != nil {
			return nil //nolint:nilerr // the service ends
		}
	}
}

// indexReady fails while the index can't be filled.
func (s *Service) indexReady(context.Context) (err error) {
	for _, l := range s.follower.Status() {
		if l.Looked.IsZero() && l.Err == nil {
			err = errors.Join(err, fmt.Errorf("%s hasn't been looked at yet", l.URL))
		}
		err = errors.Join(err, l.Err)
	}
	return err
}

// indexStatus says how far each log is in the index, for anybody to read.
func (s *Service) indexStatus() (lines []string) {
	for _, l := range s.follower.Status() {
		line := fmt.Sprintf("%s: %d of %d entries", l.URL, l.Followed, l.Size)
		var c *follow.Contradiction
		switch {
		case errors.As(l.Err, &c):
			line += "; it contradicts what it signed (" + c.Kind + "), and is followed no further"
		case l.Err != nil:
			line += "; the last attempt to go on failed"
		}
		lines = append(lines, line)
	}
	return lines
}

// startAlerts has alerts made of what the index keeps.
func (s *Service) startAlerts(context.Context, *state) (err error) {
	if s.index == nil {
		return nil
	}
	o := notify.Options{Source: s.PublicURL(), Known: s.indexed, Index: s.index, Now: s.Now, Logger: s.Logger, Metrics: s.Registry}
	if s.revoker != nil {
		o.Statements = s.revoker.Log
	}
	if s.alerts, err = notify.New(o); err != nil {
		return err
	}
	s.alerts.Use(s.loaded.alerts)
	s.index.SetTaker(s.alerts)
	return nil
}

// indexed is until when the index has every certificate; zero where that isn't known.
func (s *Service) indexed() (until time.Time) {
	for i, l := range s.follower.Status() {
		if i == 0 || l.Looked.Before(until) {
			until = l.Looked
		}
	}
	return until
}

// prepareAlerts has next's rules asked, and next's targets told.
func (s *Service) prepareAlerts(_ context.Context, next *state) (func(context.Context), func(), error) {
	if s.index == nil {
		return nil, nil, nil
	}
	var f setting.Faults
	loaded := notify.Load("alerts", next.config.Alerts, &f)
	if err := f.Err(); err != nil {
		return nil, nil, err
	}
	return func(context.Context) { s.alerts.Use(loaded) }, nil, nil
}
