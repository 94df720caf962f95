package service

import (
	"context"
	"log/slog"
	"slices"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
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

// timestampAuthorities are those that clients are told of: ours, and those that the
// section trust names. It may name ours as well, from before or after its time.
func (s *Service) timestampAuthorities(st *state) []trustroot.Authority {
	if st.timestamps == nil {
		return st.beside.TimestampAuthorities
	}
	own := st.timestamps.Chain
	all := []trustroot.Authority{{
		Chain: own, URL: s.PublicURL() + timestamp.Path, Operator: s.operator(st.config), Start: own[0].NotBefore,
	}}
	for _, a := range st.beside.TimestampAuthorities {
		if !a.Chain[0].Equal(own[0]) {
			all = append(all, a)
		}
	}
	return all
}

// lists reports whether the section trust of st names a's chain.
func lists(st *state, a *timestamp.Authority) bool {
	return slices.ContainsFunc(st.beside.TimestampAuthorities, func(l trustroot.Authority) bool { return l.Chain[0].Equal(a.Chain[0]) })
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

// prepareStamping has next's timestamp authority answer. Clients must know it before,
// and the one that it follows ever after.
func (s *Service) prepareStamping(_ context.Context, next *state) (func(context.Context), func(), error) {
	now := s.state()
	if next.timestamps == now.timestamps {
		return nil, nil, nil
	}
	const list = "trust.timestamp_authorities"
	var f setting.Faults
	if now.timestamps != nil && !lists(next, now.timestamps) {
		f.Add("timestamp", "what %s stamped would verify nowhere any more: add its chain to %s, with the end of its time", chain.Subject(now.timestamps.Chain[0]), list)
	}
	if now.timestamps != nil && next.timestamps != nil && !lists(now, next.timestamps) {
		f.Add("timestamp.chain", "clients don't know %s yet: add its chain to %s, and let it stamp once they have fetched that (ca.propagation)", chain.Subject(next.timestamps.Chain[0]), list)
	}
	if err := f.Err(); err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) {
		if next.timestamps != nil {
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "another timestamp authority answers from now on",
				slog.String("authority", chain.Subject(next.timestamps.Chain[0])))
		}
		s.timestamps.Use(next.timestamps)
	}, nil, nil
}
