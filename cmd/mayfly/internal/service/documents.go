package main

import (
	"context"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/server"
)

// startEphemeral makes the first issuing certificate, where the active authority
// is of the mode ephemeral.
func (s *service) startEphemeral(ctx context.Context) error {
	if !s.authorities.Active.IsEphemeral() {
		return nil
	}
	var err error
	s.ephemeral, err = ca.StartEphemeral(ctx, s.authorities.Active, ca.EphemeralOptions{
		// The longest of all: issuers have lifetimes of their own, and a reload may raise them.
		Lifetime: ca.MaxLifetime, Auditor: s.audit, Now: s.now, Logger: s.logger, Metrics: s.registry, Wake: s.wake,
	})
	return err
}

// inForce are configured authorities with the issuing certificates of the mode
// ephemeral, where there are any.
func (s *service) inForce(configured *ca.Authorities) *ca.Authorities {
	if s.ephemeral == nil {
		return configured
	}
	return s.ephemeral.Authorities(configured)
}

// relist puts changed issuing certificates in force: what clients read first,
// then who signs.
func (s *service) relist(context.Context) error {
	s.reloader.applying.Lock()
	defer s.reloader.applying.Unlock()
	next, c := s.inForce(s.authorities), s.reloader.inForce()
	documents, err := s.renderDocuments(c, next, s.own)
	if err != nil {
		return err
	}
	s.server.Publish(server.Documents(documents))
	s.issuer.Use(next)
	return nil
}
