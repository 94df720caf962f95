package server

import (
	"context"
	"errors"
	"net/netip"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Access gives rights beside that to certificates. access.Access does.
type Access interface {
	// Grant finds out whether the bearer of a token, or who asks without one from an
	// address, has a right. Beside an error, which fault.From classifies, the grant is as
	// far as it was found out, for the record.
	Grant(ctx context.Context, want access.Right, token string, from netip.Addr) (access.Grant, error)
}

// grant finds out whether who asks has a right.
func (s *Server) grant(ctx context.Context, want access.Right) (access.Grant, error) {
	token, most, from := bearer(ctx), s.live.Load().tokenBytes, peerAddress(ctx)
	switch {
	case s.access == nil:
		return access.Grant{Right: want}, errors.New("server: there is nobody to ask for rights")
	case len(token) > most:
		return access.Grant{Right: want}, tooLarge(fault.TokenTooLarge, "the identity token", most)
	}
	return s.access.Grant(identity.WithClient(ctx, network(from)), want, token, from)
}
