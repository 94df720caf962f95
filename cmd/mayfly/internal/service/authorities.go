package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// firstListed are when this process began to list authorities that it didn't list
// at its start, by the SHA-256 of their issuing certificates. What it saw itself
// counts for more than a time that somebody wrote.
type firstListed map[[sha256.Size]byte]time.Time

// withEphemeral are configured authorities with the issuing certificates of the
// mode ephemeral, where there are any.
func (s *Service) withEphemeral(configured *authority.Set) *authority.Set {
	if s.ephemeral == nil {
		return configured
	}
	return s.ephemeral.Authorities(configured)
}

// prepareAuthorities loads what next names, and refuses what can't follow those in
// force. The key of a new active authority is open until the rollback.
func (s *Service) prepareAuthorities(ctx context.Context, next *state) (_ func(context.Context), rollback func(), err error) {
	before := s.state()
	all, err := authority.LoadSet(ctx, next.config.CA.Section, s.authorityOptions(next.config, before.configured))
	if err != nil {
		return nil, nil, err
	}
	rollback = func() {
		if all.Active != before.configured.Active {
			all.Active.Close()
		}
	}
	if err := s.checkAuthorities(ctx, before, all, next.config); err != nil {
		rollback()
		return nil, nil, err
	}
	next.configured, next.authorities = all, s.withEphemeral(all)
	return nil, rollback, nil
}

// checkAuthorities says why next can't follow those of before in this very
// process, as a *setting.FaultError.
func (s *Service) checkAuthorities(ctx context.Context, before *state, next *authority.Set, c *config.Config) error {
	var f setting.Faults
	const list = "ca.authorities"
	inForce := lifecycle.InForce{Active: lifecycle.ID(before.configured.Active.Chain[0]), FirstListed: before.firstListed, Chains: before.configured.Chains}
	for _, l := range before.configured.Trusted {
		inForce.Listed = append(inForce.Listed, lifecycle.Listed{Name: l.Name, ID: lifecycle.ID(l.Chain[0])})
	}
	terms := lifecycle.Terms{Now: s.Now(), Propagation: c.CA.Propagation}
	lifecycle.CheckFollow(list, inForce, next.Records, lifecycle.ID(next.Active.Chain[0]), next.Chains, terms, &f)
	checkSigned(before.signed, next, c.CA.Propagation, &f)
	if now := before.configured.Active; next.Active != now {
		f.When(next.Active.IsEphemeral() || now.IsEphemeral(), list, "an authority of `mode: ephemeral` begins or ends to sign only with a restart: restart the service")
		if f.Len() > 0 {
			return f.Err()
		}
		if err := s.checkRoots(ctx, next.Active.Chain); err != nil {
			f.Add(list, "the new active authority can't sign: %v", err)
		} else if err := s.issuer.CheckPrecertificateSigner(ctx, next.Active); err != nil {
			addFaults(&f, list, err)
		}
	}
	return f.Err()
}

// prepareSigning has next's active authority sign.
func (s *Service) prepareSigning(_ context.Context, next *state) (func(context.Context), func(), error) {
	return func(ctx context.Context) {
		before := s.state().configured
		if next.configured == before {
			return
		}
		next.firstListed = maps.Clone(next.firstListed)
		for _, l := range next.configured.Trusted {
			if !slices.ContainsFunc(before.Trusted, func(b authority.Trusted) bool { return bytes.Equal(b.Chain[0], l.Chain[0]) }) {
				next.firstListed[lifecycle.ID(l.Chain[0])] = s.Now()
			}
		}
		for _, one := range next.logs.shards {
			one.AcceptRoots(next.configured.Roots())
		}
		s.useForLists(next)
		s.issuer.Use(next.authorities)
		if next.configured.Active != before.Active {
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "another authority signs from now on",
				slog.String("authority", next.configured.Active.Subject), slog.String("before", before.Active.Subject))
		}
	}, nil, nil
}

// checkRoots asks every external log whether it takes a chain. It needs the network,
// so it is for a running service, not for `check`.
func (s *Service) checkRoots(ctx context.Context, certificates [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var errs []error
	for _, l := range s.loaded.external {
		if err := l.CheckRoots(ctx, certificates); err != nil {
			errs = append(errs, fmt.Errorf("ctlog: %s: %w", l.Description().URL, err))
		}
	}
	return errors.Join(errs...)
}

// loadTimestamps loads the timestamp authority that c names, nil for none; before
// where that is the same.
func (d Dependencies) loadTimestamps(ctx context.Context, c *config.Config, before *timestamp.Authority) (*timestamp.Authority, error) {
	if !c.Timestamp.Enabled() {
		return nil, nil //nolint:nilnil // there is none
	}
	return timestamp.Reload(ctx, before, c.Timestamp, "timestamp", d.Now(), d.kmsOptions())
}

// startTimestamps puts the timestamp authority in force, where there is one.
func (s *Service) startTimestamps(_ context.Context, first *state) (err error) {
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
