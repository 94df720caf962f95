package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// OpenTUFKey opens the key that signs snapshot and timestamp.
func OpenTUFKey(ctx context.Context, c tuf.Config, d Dependencies) (kms.Signer, error) {
	return d.withRegistry().openKey(ctx, c.Key, c.Passphrase, c.Access)
}

// checkSigned adds the fault of an active authority that clients can't know yet by what
// is published; none where nothing is.
func checkSigned(r *tuf.Repository, all *authority.Set, propagation time.Duration, f *setting.Faults) {
	if r == nil || all == nil {
		return
	}
	since := func(name string) (time.Time, bool) { return r.Listed(all.Chains[name]) }
	lifecycle.CheckSigned("ca.authorities", all.Records, lifecycle.Terms{Propagation: propagation, SignedSince: since}, f)
}

// heldBack is a log that takes nothing before clients can know it by what is published.
type heldBack struct {
	ctlog.Log
	until time.Time
}

// Description begins the log when clients know it.
func (l heldBack) Description() ctlog.Description {
	d := l.Log.Description()
	d.Start = l.until
	return d
}

// never is when a log begins that isn't published.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// holdBack is a log as it may be submitted to, with a repository r.
func (s *Service) holdBack(log ctlog.Log, forced bool, r *tuf.Repository, propagation time.Duration) ctlog.Log {
	d := log.Description()
	if r == nil || forced || propagation == 0 {
		return log
	}
	until := never
	if since, listed := r.Listed(d.ID); listed && since.IsZero() {
		return log
	} else if listed {
		until = since.Add(propagation - propagation/10) // a tenth: the service takes a publication up later than it was made
	}
	if !until.After(d.Start) || !d.End.IsZero() && d.End.Before(s.Now()) {
		return log
	}
	s.Logger.Warn("a log takes no certificates before clients can know it by the signed trust root", slog.String("log", d.URL), slog.Time("begins", d.Start), slog.Time("until", until))
	return heldBack{log, until}
}

// loadTUF opens the online key and reads what was published.
func (l *Components) loadTUF(ctx context.Context, c tuf.Config, propagation time.Duration, d Dependencies, f *setting.Faults) {
	if !c.Enabled() {
		return
	}
	var err error
	if l.tufKey, err = OpenTUFKey(ctx, c, d); err != nil {
		addFaults(f, "tuf.key", err)
		return
	}
	switch l.published, err = tuf.Load(string(c.Directory)); {
	case errors.Is(err, tuf.ErrNothing):
		l.remark("tuf.directory", "%s: %v", c.Directory, err)
	case err != nil:
		f.Add("tuf.directory", "%s: %v", c.Directory, err)
	default:
		if err := l.published.CheckOnlineKey(l.tufKey.Public()); err != nil {
			f.Add("tuf.key", "%v", err)
		}
	}
	if l.Authorities != nil && l.Authorities.Active.IsEphemeral() {
		l.remark("tuf.directory", "issuing certificates of `mode: ephemeral` are new every few days: clients that follow TUF refuse each until people have signed a trust root that lists it")
	}
	checkSigned(l.published, l.Authorities, propagation, f)
}

// inspectTUF remarks on what was published.
func (l *Components) inspectTUF() {
	r := l.published
	if r == nil || len(l.Documents.TrustedRoot) == 0 {
		return
	}
	if changes, err := r.Drift(l.Documents); err != nil {
		l.remark("tuf.directory", "what this configuration tells clients can't be published: %v", err)
	} else if len(changes) > 0 {
		l.remark("tuf.directory", "what was published differs from this configuration in %d entries: mayfly tuf stage shows them", len(changes))
	}
}

// Documents are what clients are given under c: what a repository's targets are made of.
func Documents(ctx context.Context, c *config.Config, d Dependencies, o Overrides) (trustroot.Documents, error) {
	d = d.withRegistry()
	loaded, err := Load(ctx, c, d)
	if err != nil {
		return trustroot.Documents{}, err
	}
	var f setting.Faults
	loaded.inspectLogs(ctx, c, d, o, &f)
	return loaded.Documents, errors.Join(f.Err(), loaded.close())
}

// startTUF has what was published served; nothing without a repository.
func (s *Service) startTUF(ctx context.Context, first *state) (err error) {
	c := first.config.TUF
	if !c.Enabled() {
		return nil
	}
	s.tuf, err = tuf.NewOnline(tuf.Options{Key: s.loaded.tufKey, Mark: string(c.MarkFile), Now: s.Now, Logger: s.Logger, Metrics: s.Registry})
	if err != nil || s.loaded.published == nil {
		return err
	}
	commit, _, err := s.tuf.Prepare(ctx, s.loaded.published)
	if err != nil {
		return fmt.Errorf("tuf: %w", err)
	}
	commit()
	return nil
}

// mounts are all that is served beside the API and the documents.
func (s *Service) mounts(logs *logSet) map[string]http.Handler {
	all := make(map[string]http.Handler)
	if s.revoker != nil {
		maps.Copy(all, s.revoker.Mounts())
	}
	maps.Copy(all, logs.mounts)
	if s.tuf != nil {
		all[tuf.Prefix] = s.tuf
	}
	return all
}

// prepareTUF has what was published since served.
func (s *Service) prepareTUF(ctx context.Context, next *state) (func(context.Context), func(), error) {
	if s.tuf == nil {
		return nil, nil, nil
	}
	served := s.tuf.Repository()
	found, err := tuf.Load(string(next.config.TUF.Directory))
	if errors.Is(err, tuf.ErrNothing) && served == nil || err == nil && found.Same(served) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	next.signed = found
	commit, rollback, err := s.tuf.Prepare(ctx, found)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) {
		commit()
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "another trust root is served by TUF from now on", slog.Any("roles", s.tuf.Detail()))
	}, rollback, nil
}
