// Package service is the running CA: what `mayfly serve` and `mayfly dev` run and
// what `mayfly check` reads. It wires the packages that do the work from one
// configuration and decides nothing that one of them could.
//
// [Load] reads and checks what a configuration names. [Open] opens what has to be
// held open, [Service.Run] serves until its context ends, takes other
// configurations up meanwhile, and closes everything. What is in force is one
// state, which never changes: readers take it by one pointer, and whoever puts
// another in its place holds one mutex.
package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/audit/sink"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/tracing"
	"github.com/mayfly-ca/mayfly/server"
)

// Service is one running CA. Its fields but for current are set when it is opened.
type Service struct {
	Dependencies
	loaded     *Components
	started    *config.Config // that it was opened with: for settings that need a restart
	logBase    string         // where our logs are served, if not at their own URLs' hosts
	policy     *ctlog.Policy  // nil without logs
	audit      *audit.File
	sinks      []*sink.Sink
	issuer     *ca.Issuer
	revoker    *revoke.Revoker      // nil where nothing can be revoked
	ephemeral  *authority.Ephemeral // nil but with an authority of the mode ephemeral
	promises   *inclusion.Monitor   // nil without logs
	index      *index.Index         // nil without a store; filled beside all else, and nobody waits for it
	follower   *follow.Follower     // fills it
	alerts     *notify.Alerts       // nil without an index
	timestamps *timestamp.InForce   // which has no authority where there is none
	tuf        *tuf.Online          // nil without a repository
	tracer     *tracing.Tracer      // nil without tracing.endpoint
	server     *server.Server
	reads      *read.Budget // of all logs that are served here
	reloads    reloads

	changing sync.Mutex // held by whoever makes the next state and puts it in force
	current  atomic.Pointer[state]
}

// state is what is in force. It never changes: a reload, and a new issuing
// certificate of the mode ephemeral, put another in its place.
type state struct {
	config      *config.Config
	since       time.Time      // when config was put in force
	configured  *authority.Set // as config has them
	authorities *authority.Set // with the issuing certificates of the mode ephemeral
	firstListed firstListed
	timestamps  *timestamp.Authority // nil where there is none
	logs        *logSet
	beside      trustroot.History // what the section trust of config names
	documents   trustroot.Documents
	signed      *tuf.Repository // what is published by TUF; nil while nothing is
}

func (s *Service) state() *state { return s.current.Load() }

// Addresses are where it listens.
func (s *Service) Addresses() server.Addresses { return s.server.Addresses() }

// Documents are what clients are given now.
func (s *Service) Documents() trustroot.Documents { return s.state().documents }

// ActiveAuthority is the name of the authority which signs now.
func (s *Service) ActiveAuthority() string { return s.state().configured.Active.Subject }

// activeChain is the chain of the authority which signs now.
func (s *Service) activeChain() [][]byte { return s.issuer.Authorities().Active.Chain }

// PublicURL is where clients reach REST.
func (s *Service) PublicURL() string { return PublicURL(s.started) }

// PublicURL is where clients reach REST of a service with the configuration c.
func PublicURL(c *config.Config) string {
	if c.Server.PublicURL != "" {
		return c.Server.PublicURL
	}
	scheme := "http"
	if c.Server.TLS.Enabled() {
		scheme = "https"
	}
	return scheme + "://" + c.Server.HTTPAddress
}

// operator names who runs this CA in the documents: as the configuration c has it
// for one of its logs, or for the host.
func (s *Service) operator(c *config.Config) string {
	for _, log := range c.CTLog.Own() {
		if log.Operator != "" {
			return log.Operator
		}
	}
	return c.Trust.Operator("", s.PublicURL())
}

// Run serves until ctx ends, drains, and closes everything.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	parts := []func(context.Context) error{
		s.loaded.verifier.Run, s.server.Serve, s.issuer.Run, s.issuer.WatchExpiry, s.timestamps.Watch, s.audit.Run, s.watchConfiguration, s.warnBeforeLastLogEnds,
	}
	if s.index != nil {
		parts = append(parts, s.runIndex)
	}
	if s.revoker != nil {
		parts = append(parts, s.revoker.Run)
		if s.index != nil {
			parts = append(parts, s.indexRevocations)
		}
	}
	for _, one := range s.sinks {
		parts = append(parts, one.Run)
	}
	if s.promises != nil {
		parts = append(parts, s.promises.Run)
	}
	for _, l := range s.loaded.external {
		parts = append(parts, func(ctx context.Context) error { return l.WatchRoots(ctx, s.activeChain) })
	}
	if s.tuf != nil {
		parts = append(parts, s.tuf.Run)
	}
	if s.ephemeral != nil {
		parts = append(parts, func(ctx context.Context) error { return s.ephemeral.Run(ctx, s.relist) })
	}
	for _, run := range parts {
		group.Go(func() error { return run(ctx) })
	}
	s.changing.Lock()
	for _, one := range s.state().logs.shards {
		one.scrub.start(ctx, one.Log)
	}
	s.changing.Unlock()
	err := waitFor(ctx, group.Wait, func() time.Duration {
		server := s.state().config.Server
		return server.ShutdownDelay + server.ShutdownGrace + overtime
	})
	if errors.Is(err, errHangs) {
		return err
	}
	return errors.Join(err, s.close(ctx, s.state().logs))
}

// overtime is what the parts of a service may take beyond the time for requests.
const overtime = 5 * time.Second

var errHangs = errors.New("a part of the service hasn't ended in time, as when a disk doesn't answer: the process ends without it")

// waitFor returns what wait does, or errHangs when that takes longer than most after ctx ended.
func waitFor(ctx context.Context, wait func() error, most func() time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(most()):
		return fmt.Errorf("%v after it was told to: %w", most(), errHangs)
	}
}
