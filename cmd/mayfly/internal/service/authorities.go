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
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// firstListed are when this process began to list authorities that it didn't list
// at its start, by the SHA-256 of their issuing certificates. What it saw itself
// counts for more than a time that somebody wrote.
type firstListed map[[sha256.Size]byte]time.Time

// with adds what next lists and before didn't, to a copy.
func (f firstListed) with(next, before *authority.Set, now time.Time) firstListed {
	all := maps.Clone(f)
	for _, l := range next.Trusted {
		if !slices.ContainsFunc(before.Trusted, func(b authority.Trusted) bool { return bytes.Equal(b.Chain[0], l.Chain[0]) }) {
			all[lifecycle.ID(l.Chain[0])] = now
		}
	}
	return all
}

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
		if next.Active.IsEphemeral() || now.IsEphemeral() {
			f.Add(list, "an authority of `mode: ephemeral` begins or ends to sign only with a restart: restart the service")
		}
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
		next.firstListed = next.firstListed.with(next.configured, before, s.Now())
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

// checkRoots asks every external log whether it takes chain. It needs the network,
// so it is for a running service, not for `check`.
func (s *Service) checkRoots(ctx context.Context, chain [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var errs []error
	for _, l := range s.loaded.external {
		if err := l.CheckRoots(ctx, chain); err != nil {
			errs = append(errs, fmt.Errorf("ctlog: %s: %w", l.Description().URL, err))
		}
	}
	return errors.Join(errs...)
}
