package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// rollout is the part of the propagation time that a configuration may take to
// reach this process: a replica may begin to list an authority later than the
// command that published it recorded.
const rollout = 10 // one tenth

// appearances are when this process began to list authorities that it didn't
// list at its start, by their issuing certificates. What it saw itself counts for
// more than a time that somebody wrote.
type appearances map[[sha256.Size]byte]time.Time

// see adds what a lists and before didn't.
func (seen appearances) see(a, before *ca.Authorities, now time.Time) {
	for _, l := range a.Listed {
		known := slices.ContainsFunc(before.Listed, func(b ca.Listed) bool { return bytes.Equal(b.Chain[0], l.Chain[0]) })
		if id := sha256.Sum256(l.Chain[0]); !known {
			seen[id] = now
		}
	}
}

// nextAuthorities loads what next names, and refuses what can't follow those in
// force. Keys are open when it returns. Its error is a *setting.FaultError.
func (s *service) nextAuthorities(ctx context.Context, next *config.Config) (*ca.Authorities, error) {
	now := s.authorities
	all, err := ca.LoadAuthorities(ctx, next.CA, s.loading(next, now))
	if err != nil {
		return nil, err
	}
	var f setting.Faults
	s.checkSuccession(now, all, next.CA.Propagation, &f)
	if all.Active != now.Active && (all.Active.IsEphemeral() || now.Active.IsEphemeral()) {
		f.Add("ca.authorities", "an authority of `mode: ephemeral` begins or ends to sign only with a restart: restart the service")
	}
	if f.Len() == 0 && all.Active != now.Active {
		if err := s.checkRoots(ctx, all.Active.Chain()); err != nil {
			f.Add("ca.authorities", "the new active authority can't sign: %v", err)
		} else if err := s.issuer.Settle(ctx, all.Active); err != nil {
			addFaults(&f, "ca.authorities", err)
		}
	}
	if err := f.Err(); err != nil {
		s.discard(all)
		return nil, err
	}
	return all, nil
}

// checkSuccession adds why next can't follow before, in this very process.
func (s *service) checkSuccession(before, next *ca.Authorities, propagation time.Duration, f *setting.Faults) {
	if len(next.Records) == 0 {
		return
	}
	const list = "ca.authorities"
	for _, l := range before.Listed {
		i := lifecycle.Find(next.Records, l.Name)
		if i < 0 {
			f.Add(list, "%s is gone, but clients are told to trust it: put it back, or distrust it first", l.Name)
			continue
		}
		r, at := next.Records[i], setting.Index(list, i)
		if !r.Listed() && r.State != lifecycle.Distrusted {
			f.Add(at+".state", "%s is no more listed, but clients are told to trust it: put its state back, or distrust it first", l.Name)
			continue
		}
		if signed := bytes.Equal(l.Chain[0], before.Active.Chain()[0]); signed && r.State == lifecycle.Distrusted {
			f.Add(at+".state", "%s signs in this service: activate another first, then distrust it", l.Name)
		} else if end := r.WindowEnd(); signed && !end.IsZero() && end.Before(s.now()) {
			f.Add(at+".retired", "%s signed in this service until now, and clients would refuse what began after %s: run `mayfly authority retire %s`, which records the time again",
				l.Name, end.UTC().Format(time.RFC3339), l.Name)
		}
	}
	seen, ok := s.appeared[sha256.Sum256(next.Active.Chain()[0])]
	i := slices.IndexFunc(next.Records, func(e lifecycle.Entry) bool { return e.State == lifecycle.Active })
	if !ok && next.Active != before.Active && !slices.ContainsFunc(before.Listed, func(l ca.Listed) bool {
		return bytes.Equal(l.Chain[0], next.Active.Chain()[0])
	}) {
		seen, ok = s.now(), true // it was never listed here
	}
	if listed := s.now().Sub(seen); ok && i >= 0 && next.Records[i].Forced == "" && listed < propagation-propagation/rollout {
		f.Add(setting.Index(list, i)+".published", "this service has listed %s for %v, whatever is written, and clients need %v to learn of it: activate it later; `mayfly authority activate %s --force` says what sooner risks",
			next.Records[i].Name, listed.Truncate(time.Second), propagation, next.Records[i].Name)
	}
}

// discard closes the key of authorities that aren't put in force.
func (s *service) discard(a *ca.Authorities) {
	if a.Active != s.authorities.Active {
		a.Active.Close()
	}
}

// useAuthorities puts authorities in force.
func (s *service) useAuthorities(ctx context.Context, a *ca.Authorities) {
	before := s.authorities
	if a == before {
		return
	}
	s.appeared.see(a, before, s.now())
	s.authorities = a // for logs that are opened later
	for _, one := range s.own.shards {
		one.log.AcceptRoots(a.Roots())
	}
	s.issuer.Use(s.inForce(a))
	if a.Active != before.Active {
		s.logger.LogAttrs(ctx, slog.LevelInfo, "another authority signs from now on",
			slog.String("authority", a.Active.Name()), slog.String("before", before.Active.Name()))
	}
}

// eachAuthority says how every authority stands, in words that anybody may read.
func (s *service) eachAuthority() []string {
	all := s.issuer.Authorities()
	now := s.now()
	lines := []string{"signatures a certificate: " + s.issuer.SigningForm()}
	for n, l := range all.Listed {
		if n == maxIssuerLines {
			return append(lines, fmt.Sprintf("and %d more", len(all.Listed)-n))
		}
		state := lifecycle.Active
		if i := lifecycle.Find(all.Records, l.Name); i >= 0 {
			state = all.Records[i].State
		}
		line := fmt.Sprintf("%s: %s, valid to %s", l.Name, state, l.NotAfter.UTC().Format(time.RFC3339))
		if w := l.Expiry(now); w != "" {
			line += "; " + w
		}
		lines = append(lines, line)
	}
	return lines
}

// checkRoots asks every external log whether it takes chain. It needs the network,
// so it is for a running service, not for `check`.
func (p *parts) checkRoots(ctx context.Context, chain [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var errs []error
	for _, l := range p.external {
		if err := l.CheckRoots(ctx, chain); err != nil {
			errs = append(errs, fmt.Errorf("ctlog: %s: %w", l.Description().URL, err))
		}
	}
	return errors.Join(errs...)
}
