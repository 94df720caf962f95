package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run serves until ctx ends, drains, and closes everything.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.loaded.verifier.Run(ctx) })
	group.Go(func() error { return s.server.Serve(ctx) })
	group.Go(func() error { return s.issuer.Run(ctx) })
	group.Go(func() error { return s.issuer.WatchExpiry(ctx) })
	group.Go(func() error { return s.timestamps.Watch(ctx) })
	if s.index != nil {
		group.Go(func() error { return s.runIndex(ctx) })
	}
	if s.revoker != nil && s.index != nil {
		group.Go(func() error { s.indexRevocations(ctx); return nil })
	}
	if s.revoker != nil {
		group.Go(func() error { return s.revoker.Run(ctx) })
	}
	group.Go(func() error { return s.audit.Run(ctx) })
	for _, one := range s.sinks {
		group.Go(func() error { return one.Run(ctx) })
	}
	if s.promises != nil {
		group.Go(func() error { return s.promises.Run(ctx) })
	}
	s.changing.Lock()
	for _, one := range s.state().logs.shards {
		one.scrub.start(ctx, one.Log)
	}
	s.changing.Unlock()
	for _, l := range s.loaded.external {
		group.Go(func() error { return l.WatchRoots(ctx, s.activeChain) })
	}
	group.Go(func() error { return s.watchConfiguration(ctx) })
	group.Go(func() error { return s.warnBeforeLastLogEnds(ctx) })
	if s.tuf != nil {
		group.Go(func() error { return s.tuf.Run(ctx) })
	}
	if s.ephemeral != nil {
		group.Go(func() error { return s.ephemeral.Run(ctx, s.relist) })
	}
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
