package service

import (
	"context"
	"errors"

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
	err := group.Wait()
	return errors.Join(err, s.close(ctx, s.state().logs))
}
