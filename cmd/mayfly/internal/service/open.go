package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/audit/sink"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/backup"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/tracing"
	"github.com/mayfly-ca/mayfly/server"
)

// Overrides are what a caller that chose the port itself knows better than the
// configuration.
type Overrides struct {
	HTTPListener net.Listener // in place of server.http_address
	LogBase      string       // in place of scheme and host of our logs' URLs in the trust root
}

// Open wires a service and opens what it holds: audit trail, logs and listeners.
// The configuration c was read from the source; the zero source is never read
// again. On an error nothing stays open.
func Open(ctx context.Context, c *config.Config, d Dependencies, o Overrides, from Source) (_ *Service, err error) {
	s := &Service{Dependencies: d.withRegistry(), started: c, logBase: o.LogBase, reads: read.NewBudget()}
	starting := s.Dependencies
	starting.start = true
	if s.loaded, err = Load(ctx, c, starting); err != nil {
		return nil, err
	}
	for _, r := range s.loaded.Remarks {
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "a remark on the configuration", slog.String("remark", r))
	}
	first := &state{config: c, since: s.Now(), configured: s.loaded.Authorities, firstListed: firstListed{}, signed: s.loaded.published, logs: &logSet{}, beside: s.loaded.Beside}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx, first.logs))
		}
	}()
	for _, start := range []func(context.Context, *state) error{
		s.startAudit, s.startLogs, s.startAuthorities, s.startTimestamps, s.startDocuments, s.startMonitor,
		s.startIndex, s.startRevocation, s.startAlerts, s.startTUF,
	} {
		if err := start(ctx, first); err != nil {
			return nil, err
		}
	}
	if err := s.reloads.start(s, first, from); err != nil {
		return nil, err
	}
	s.current.Store(first)
	if err := s.startServer(ctx, first, o.HTTPListener); err != nil {
		return nil, err
	}
	return s, nil
}

// startAudit opens the audit trail, once all external logs take our certificates.
func (s *Service) startAudit(ctx context.Context, first *state) (err error) {
	if err := s.checkRoots(ctx, first.configured.Active.Chain); err != nil {
		return err
	}
	c := first.config
	if s.audit, err = audit.Open(c.Audit, audit.Options{Source: c.Server.PublicURL, Now: s.Now, Logger: s.Logger, Metrics: s.Registry}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	s.sinks, err = sink.New(c.Audit, sink.Options{Out: s.Out, Now: s.Now, Logger: s.Logger, Metrics: s.Registry})
	return errors.Join(err, metric.Register(s.Registry, metric.Read("mayfly_backup_last_success_timestamp_seconds", "When mayfly backup took all last; 0 when it never did on this host.", nil,
		func() float64 { return float64(backup.Last(string(c.Audit.Path)).Unix()) })))
}

// startLogs opens our own logs, where there are any, and puts a policy before all
// logs; none when the operator accepted certificates that no log knows.
func (s *Service) startLogs(ctx context.Context, first *state) error {
	c := first.config.CTLog
	logs, err := s.openLogSet(ctx, first, s.loaded.LogKeys, first.logs)
	if err != nil {
		return err
	}
	first.logs = logs
	if c.Mode == ctlog.ModeNone {
		return nil
	}
	s.policy, err = ctlog.NewPolicy(s.submittedTo(first), ctlog.Options{
		SCTs: c.SCTs, Operators: c.Operators, Stagger: c.Stagger, Timeout: c.Timeout, Now: s.Now, Logger: s.Logger, Metrics: s.Registry,
	})
	return err
}

// startAuthorities makes the issuer, after the first ephemeral issuing certificate
// where the active authority is of that mode.
func (s *Service) startAuthorities(ctx context.Context, first *state) (err error) {
	if first.configured.Active.IsEphemeral() {
		s.ephemeral, err = authority.StartEphemeral(ctx, first.configured.Active, authority.EphemeralOptions{
			// The longest of all: issuers have lifetimes of their own, and a reload may raise them.
			Lifetime: ca.MaxLifetime, Trail: audit.Trail{Recorder: s.audit, Now: s.Now, Logger: s.Logger}, Metrics: s.Registry, Wake: s.wake,
		})
		if err != nil {
			return err
		}
	}
	if err := s.registerCoverageGauge(); err != nil {
		return err
	}
	first.authorities = s.withEphemeral(first.configured)
	o := ca.Options{
		Authorities: first.authorities, Auditor: s.audit, AcceptUnlogged: first.config.CTLog.AcceptUnlogged,
		Now: s.Now, Logger: s.Logger, Metrics: s.Registry,
	}
	if s.policy != nil {
		o.Log = s.policy
	}
	if s.issuer, err = ca.New(first.config.CA, o); err != nil {
		return err
	}
	if s.ephemeral == nil { // else the issuer has other keys than the one that was loaded
		s.loaded.Authorities = nil
	}
	return s.issuer.CheckPrecertificateSigner(ctx, first.authorities.Active)
}

// startDocuments renders what clients are given.
func (s *Service) startDocuments(_ context.Context, first *state) (err error) {
	_, first.documents, err = s.render(first)
	return err
}

// startMonitor makes the monitor that reads all logs until they hold what they
// promised; none without logs. Its state is beside the audit trail.
func (s *Service) startMonitor(_ context.Context, first *state) (err error) {
	logs := s.monitored(first)
	if len(logs) == 0 {
		return nil
	}
	trail := string(first.config.Audit.Path)
	s.promises, err = inclusion.New(inclusion.Options{
		Trail: promises.Follow(trail, s.Logger), State: inclusion.StateFile(trail),
		Logs: logs, Now: s.Now, Logger: s.Logger, Metrics: s.Registry,
	})
	return err
}

// startServer makes the server and opens its addresses.
func (s *Service) startServer(ctx context.Context, first *state, listener net.Listener) error {
	site, err := s.newPage(first)
	if err != nil {
		return err
	}
	s.tracer, err = tracing.New(ctx, first.config.Tracing, tracing.Options{Version: s.Build["version"], Logger: s.Logger, Now: s.Now})
	if err != nil {
		return err
	}
	made, err := server.New(ctx, first.config.Server, server.Options{
		Identity: s.loaded.verifier, Access: s.loaded.access, Keys: s.loaded.keys, CA: s.issuer, Auditor: s.audit,
		Served:       s.served(first),
		Dependencies: s.readiness(),
		Index:        s.index,
		Revocation:   s.revoker,
		Page:         site,
		HTTPListener: listener,
		Tracer:       s.tracer,
		Logger:       s.Logger, Metrics: s.Registry, Now: s.Now,
	})
	if err != nil {
		return err
	}
	if err := made.Listen(ctx); err != nil {
		return err
	}
	s.server = made
	return nil
}
