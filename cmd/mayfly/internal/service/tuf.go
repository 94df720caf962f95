package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// signedRoot is the TUF repository as a configuration names it; zero without one.
type signedRoot struct {
	key        kms.Signer
	repository *tuf.Repository // nil while nothing is published
}

// OpenTUFKey opens the key that signs snapshot and timestamp.
func OpenTUFKey(ctx context.Context, c tuf.Config, d Dependencies) (kms.Signer, error) {
	o := d.withRegistry().kmsOptions()
	o.Passphrase, o.Access = c.Passphrase, c.Access
	return keystore.Open(ctx, string(c.Key), o)
}

// loadTUF opens the online key and reads what was published.
func (l *Components) loadTUF(ctx context.Context, c tuf.Config, d Dependencies, f *setting.Faults) {
	if !c.Enabled() {
		return
	}
	var err error
	if l.tuf.key, err = OpenTUFKey(ctx, c, d); err != nil {
		addFaults(f, "tuf.key", err)
		return
	}
	switch l.tuf.repository, err = tuf.Load(string(c.Directory)); {
	case errors.Is(err, tuf.ErrNothing):
		l.remark("tuf.directory", "%s: %v", c.Directory, err)
	case err != nil:
		f.Add("tuf.directory", "%s: %v", c.Directory, err)
	default:
		if err := l.tuf.repository.CheckOnlineKey(l.tuf.key.Public()); err != nil {
			f.Add("tuf.key", "%v", err)
		}
	}
}

// inspectTUF remarks on what was published.
func (l *Components) inspectTUF() {
	r := l.tuf.repository
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
func (s *Service) startTUF(ctx context.Context, c tuf.Config) (err error) {
	if !c.Enabled() {
		return nil
	}
	s.tuf, err = tuf.NewOnline(tuf.Options{Key: s.loaded.tuf.key, Mark: string(c.MarkFile), Now: s.Now, Logger: s.Logger, Metrics: s.Registry})
	if err != nil || s.loaded.tuf.repository == nil {
		return err
	}
	commit, _, err := s.tuf.Prepare(ctx, s.loaded.tuf.repository)
	if err != nil {
		return fmt.Errorf("tuf: %w", err)
	}
	commit()
	return nil
}

// mounts are all that is served beside the API and the documents.
func (s *Service) mounts(logs *logSet) map[string]http.Handler {
	if s.tuf == nil {
		return logs.mounts
	}
	all := maps.Clone(logs.mounts)
	all[tuf.Prefix] = s.tuf
	return all
}

// prepareTUF has what was published since served.
func (s *Service) prepareTUF(ctx context.Context, next *state) (func(context.Context), func(), error) {
	if s.tuf == nil {
		return nil, nil, nil
	}
	served := s.tuf.Repository()
	found, err := tuf.Load(string(next.config.TUF.Directory))
	if err != nil {
		if errors.Is(err, tuf.ErrNothing) && served == nil {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	if found.Same(served) {
		return nil, nil, nil
	}
	commit, rollback, err := s.tuf.Prepare(ctx, found)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) {
		commit()
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "another trust root is served by TUF from now on", slog.Any("roles", s.tuf.Detail()))
	}, rollback, nil
}
