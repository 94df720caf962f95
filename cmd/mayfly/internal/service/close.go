package service

import (
	"context"
	"errors"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// closeTimeout bounds how long a log may take to finish its last batch.
const closeTimeout = 15 * time.Second

// Close closes a service that doesn't run; [Service.Run] closes one that did.
func (s *Service) Close(ctx context.Context) error { return s.close(ctx, s.state().logs) }

// close closes what is open: first what takes requests, last the audit trail that
// they are recorded in. ctx gives values, not time.
func (s *Service) close(ctx context.Context, logs *logSet) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	var errs []error
	if s.server != nil {
		s.server.Close()
	}
	s.tracer.Close(ctx)
	errs = append(errs, closeShards(ctx, logs.shards))
	if s.revoker != nil {
		errs = append(errs, s.revoker.Close())
	}
	if s.issuer != nil {
		s.issuer.Close()
	}
	if s.timestamps != nil {
		s.timestamps.Use(nil)
	}
	errs = append(errs, s.loaded.close())
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	return errors.Join(errs...)
}

// closeShards closes logs, and then their keys. ctx gives values, not time.
func closeShards(ctx context.Context, shards []*shard) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var errs []error
	for _, one := range shards {
		one.scrub.stop()
		errs = append(errs, one.Close(ctx))
		kms.Close(one.key)
	}
	return errors.Join(errs...)
}
