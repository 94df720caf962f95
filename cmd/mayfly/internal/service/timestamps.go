package service

import (
	"context"
	"log/slog"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/server"
)

// loadTimestamps loads the timestamp authority that c names, nil for none; before
// where that is the same.
func (d Dependencies) loadTimestamps(ctx context.Context, c *config.Config, before *timestamp.Authority) (*timestamp.Authority, error) {
	if !c.Timestamp.Enabled() {
		return nil, nil //nolint:nilnil // there is none
	}
	return timestamp.Reload(ctx, before, c.Timestamp, "timestamp", d.Now(), d.kmsOptions())
}

// startTimestamps puts the timestamp authority in force, where there is one.
func (s *Service) startTimestamps(first *state) (err error) {
	s.timestamps, err = timestamp.NewInForce(timestamp.Options{
		Now: s.Now, TimeSources: first.config.Timestamp.TimeSources, Logger: s.Logger, Metrics: s.Registry,
	})
	if err != nil {
		return err
	}
	first.timestamps, s.loaded.timestamps = s.loaded.timestamps, nil
	s.timestamps.Use(first.timestamps)
	return nil
}

// served is what the server mounts: nothing where st has no timestamp authority.
func (s *Service) served(st *state) server.Timestamps {
	if st.timestamps == nil {
		return nil
	}
	return s.timestamps
}

// ownTimestamps is what clients are told of our timestamp authority.
func (s *Service) ownTimestamps(st *state) []trustroot.Authority {
	if st.timestamps == nil {
		return nil
	}
	chain := st.timestamps.Chain
	return []trustroot.Authority{{
		Chain: chain, URL: s.PublicURL() + timestamp.Path, Operator: s.operator(st.config), Start: chain[0].NotBefore,
	}}
}

// prepareTimestamps loads the timestamp authority that next names.
func (s *Service) prepareTimestamps(ctx context.Context, next *state) (_ func(context.Context), rollback func(), err error) {
	before := s.state().timestamps
	if next.timestamps, err = s.loadTimestamps(ctx, next.config, before); err != nil {
		return nil, nil, err
	}
	return nil, func() {
		if next.timestamps != before {
			next.timestamps.Close()
		}
	}, nil
}

// prepareStamping has next's timestamp authority answer.
func (s *Service) prepareStamping(_ context.Context, next *state) (func(context.Context), func(), error) {
	return func(ctx context.Context) {
		if next.timestamps != s.state().timestamps && next.timestamps != nil {
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "another timestamp authority answers from now on",
				slog.String("authority", chain.Subject(next.timestamps.Chain[0])))
		}
		s.timestamps.Use(next.timestamps)
	}, nil, nil
}
