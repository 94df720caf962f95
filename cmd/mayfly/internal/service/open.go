package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/server"
)

// closeTimeout bounds how long the log may take to finish its last batch.
const closeTimeout = 15 * time.Second

// service is one running CA, wired from one configuration. What it holds open
// is closed in the opposite order of its opening.
type service struct {
	environment
	parts
	config    *config.Config // that it started with
	policy    *ctlog.Policy  // nil without logs
	logBase   string         // where our logs are served, if not at their own URLs' hosts
	documents trustroot.Documents
	audit     *audit.File
	own       ownLogs
	issuer    *ca.Issuer
	ephemeral *ca.Ephemeral // nil but with an authority of the mode ephemeral
	reloader  *reloader
	appeared  appearances
	promises  *inclusion.Monitor // nil without logs
	server    *server.Server
}

// errNotFetched is how an issuer stands before the first answer.
var errNotFetched = errors.New("its keys have not been fetched yet")

// newRegistry makes the metrics registry of a process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// located is what a caller that chose the port itself knows better than the
// configuration, and where the configuration came from.
type located struct {
	http    net.Listener // in place of server.http_address
	logBase string       // in place of scheme and host of our logs' URLs in the trust root
	source  source       // the zero value is never read again
}

// open wires a service and opens what it holds: audit trail, log and listeners.
// On an error nothing stays open.
func open(ctx context.Context, c *config.Config, e environment, registry *prometheus.Registry, at located) (_ *service, err error) {
	e.registry = registry
	loaded, err := loadParts(ctx, c, e)
	if err != nil {
		return nil, err
	}
	s := &service{environment: e, parts: *loaded, config: c, logBase: at.logBase, appeared: appearances{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if err := s.checkRoots(ctx, s.authorities.Active.Chain()); err != nil {
		return nil, err
	}
	if s.audit, err = audit.Open(c.Audit, audit.Options{Source: c.Server.PublicURL, Now: e.now, Logger: e.logger, Metrics: e.registry}); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if s.policy, err = s.openLogs(ctx); err != nil {
		return nil, err
	}
	if err := s.startEphemeral(ctx); err != nil {
		return nil, err
	}
	if err := s.gaugeOfEnd(); err != nil {
		return nil, err
	}
	if s.issuer, err = s.newIssuer(); err != nil {
		return nil, err
	}
	if err := s.issuer.Settle(ctx, s.inForce(s.authorities).Active); err != nil {
		return nil, err
	}
	if s.documents, err = s.renderDocuments(c, s.inForce(s.authorities), s.own); err != nil {
		return nil, err
	}
	if s.promises, err = s.newMonitor(); err != nil {
		return nil, err
	}
	if s.reloader, err = newReloader(s, at.source); err != nil {
		return nil, err
	}
	s.server, err = server.New(c.Server, server.Options{
		Identity: s.verifier, Keys: s.keys, CA: s.issuer, Auditor: s.audit,
		Documents:    server.Documents(s.documents),
		Dependencies: s.dependencies(),
		Mounts:       s.own.mounts,
		Posts:        s.own.posts,
		HTTPListener: at.http,
		Logger:       e.logger, Metrics: registry, Now: e.now,
	})
	if err != nil {
		return nil, err
	}
	if err := s.server.Listen(ctx); err != nil {
		s.server = nil
		return nil, err
	}
	return s, nil
}

// openLogs opens our own logs, where there are any, and puts a policy before all
// logs; nil when the operator accepted certificates that no log knows.
func (s *service) openLogs(ctx context.Context) (_ *ctlog.Policy, err error) {
	c := s.config.CTLog
	if s.own, err = s.openOwn(ctx, s.config, s.logKeys, ownLogs{}); err != nil {
		return nil, err
	}
	if c.Mode == ctlog.ModeNone {
		return nil, nil //nolint:nilnil // the one mode without a log, which the operator wrote twice
	}
	p, err := ctlog.NewPolicy(s.members(), ctlog.Options{
		SCTs: c.SCTs, Operators: c.Operators, Stagger: c.Stagger, Timeout: c.Timeout, Now: s.now, Logger: s.logger, Metrics: s.registry,
	})
	return p, err
}

func (s *service) newIssuer() (*ca.Issuer, error) {
	o := ca.Options{
		Authorities: s.inForce(s.authorities), Auditor: s.audit, AcceptUnlogged: s.config.CTLog.AcceptUnlogged,
		Now: s.now, Logger: s.logger, Metrics: s.registry,
	}
	if s.policy != nil {
		o.Log = s.policy
	}
	return ca.New(s.config.CA, o)
}

// renderDocuments writes what clients need to trust and to find this CA, with
// the issuers of c, all authorities that are listed, and our logs as given.
func (s *service) renderDocuments(c *config.Config, a *ca.Authorities, own ownLogs) (trustroot.Documents, error) {
	start := a.Listed[0].Start
	in := trustroot.Input{CA: []trustroot.Service{{URL: s.publicURL(), Operator: s.operator(), Start: start}}}
	for _, l := range a.Listed {
		in.Authorities = append(in.Authorities, trustroot.Authority{Chain: l.Chain, URL: s.publicURL(), Start: l.Start, End: l.End})
	}
	in.Logs = s.descriptions(own, s.logBase)
	for _, i := range c.Issuers {
		if i.URL != "" && i.Type == identity.TypeEmail { // where a person can log in
			in.OIDC = append(in.OIDC, trustroot.Service{URL: i.URL, Operator: i.URL, Start: start})
		}
	}
	return trustroot.Render(in)
}

// publicURL is where clients reach REST.
func (s *service) publicURL() string {
	if s.config.Server.PublicURL != "" {
		return s.config.Server.PublicURL
	}
	scheme := "http"
	if s.config.Server.TLS.Enabled() {
		scheme = "https"
	}
	return scheme + "://" + s.config.Server.HTTPAddress
}

// operator names who runs this CA in the documents.
func (s *service) operator() string {
	for _, log := range s.config.CTLog.Own() {
		if log.Operator != "" {
			return log.Operator
		}
	}
	if u, err := url.Parse(s.publicURL()); err == nil {
		return u.Hostname()
	}
	return "mayfly"
}

// dependencies are what must work for a certificate to be issued.
func (s *service) dependencies() []server.Dependency {
	all := []server.Dependency{
		{Name: "authority", Check: s.issuer.Ready, Detail: s.eachAuthority},
		{Name: "audit", Check: s.audit.Ready},
		{Name: "issuers", Check: s.anyIssuer, Detail: s.eachIssuer},
		{Name: "configuration", Check: s.reloader.check, Detail: s.reloader.detail, Informational: true},
	}
	if s.replay != nil {
		all = append(all, server.Dependency{Name: "replay", Check: s.replayReady})
	}
	if s.ephemeral != nil {
		all = append(all, server.Dependency{Name: "renewal", Check: s.ephemeral.Ready, Detail: s.ephemeral.Detail, Informational: true})
	}
	if s.policy != nil {
		all = append(all, server.Dependency{Name: "log", Check: s.policy.Ready, Detail: s.eachLog},
			server.Dependency{Name: "next log", Check: s.nextLog, Detail: s.eachShard, Informational: true})
	}
	return all
}

// replayReady fails when an issuer's tokens are accepted once and the store that
// the replicas share can't tell which were used.
func (s *service) replayReady(ctx context.Context) error {
	if !s.verifier.AcceptsOnce() {
		return nil
	}
	return s.replay.Ready(ctx)
}

// anyIssuer fails when not one issuer's keys could be fetched: then nobody can
// get a certificate. One issuer of several that is down is no reason to send
// everybody else away.
func (s *service) anyIssuer(context.Context) error {
	var errs []error
	for _, i := range s.verifier.Status() {
		if i.Ready {
			return nil
		}
		err := i.Err
		if err == nil {
			err = errNotFetched
		}
		errs = append(errs, fmt.Errorf("%s: %w", i.Name, err))
	}
	return errors.Join(errs...)
}

// maxIssuerLines bounds what /readyz?verbose says of the issuers.
const maxIssuerLines = 200

// eachIssuer says how every issuer stands, in words that anybody may read: their
// URLs are public anyway.
func (s *service) eachIssuer() []string {
	var lines []string
	all := s.verifier.Status()
	for n, i := range all {
		if n == maxIssuerLines {
			return append(lines, fmt.Sprintf("and %d more", len(all)-n))
		}
		line := i.Name + ": no keys yet"
		switch {
		case i.Ready:
			line = fmt.Sprintf("%s: keys are %s old", i.Name, i.KeysAge.Truncate(time.Second))
		case i.KeysAge > 0:
			line = fmt.Sprintf("%s: keys are %s old, which is too old", i.Name, i.KeysAge.Truncate(time.Second))
		}
		if c := i.Category(); c != "" {
			line += "; the last attempt failed: " + c
		}
		lines = append(lines, line)
	}
	return lines
}

// awaitReady returns when a certificate could be issued, or ctx has ended.
func (s *service) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.server.Ready(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// activeChain is that of the authority which signs now.
func (s *service) activeChain() [][]byte { return s.issuer.Authorities().Active.Chain() }

// run serves until ctx ends, drains, and closes everything.
func (s *service) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return ignoreEnd(s.verifier.Run(ctx)) })
	group.Go(func() error { return s.server.Serve(ctx) })
	group.Go(func() error { return s.issuer.Run(ctx) })
	group.Go(func() error { return s.issuer.WatchExpiry(ctx) })
	if s.promises != nil {
		group.Go(func() error { return s.promises.Run(ctx) })
	}
	for _, one := range s.own.shards {
		one.patrol(ctx)
	}
	for _, l := range s.external {
		group.Go(func() error { return l.WatchRoots(ctx, s.activeChain) })
	}
	group.Go(func() error { return s.reloader.run(ctx) })
	group.Go(func() error { return s.tellOfEnd(ctx) })
	if s.ephemeral != nil {
		group.Go(func() error { return s.ephemeral.Run(ctx, s.relist) })
	}
	err := group.Wait()
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

// close closes what is open, the server's listeners first. ctx gives values, not time.
func (s *service) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var errs []error
	if s.server != nil {
		s.server.Close()
	}
	errs = append(errs, closeAll(ctx, s.own.shards))
	for _, l := range s.external {
		l.Close()
	}
	if s.replay != nil {
		errs = append(errs, s.replay.Close())
	}
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	return errors.Join(errs...)
}

// ignoreEnd is err, but nil when it only says that the context ended.
func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// frugal sets how far the heap may grow over what is live, where the operator
// hasn't (GOGC): what is live is a few megabytes, so a collection half as often
// saves CPU and costs little memory. There is no fixed limit: a log with millions
// of entries keeps more, and a limit below that would collect without end.
func frugal() {
	const growth = 200 // percent
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
}
