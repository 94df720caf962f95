package server

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// Revocation revokes certificates. revoke.Revoker does.
type Revocation interface {
	// Revoke revokes what q means, durably before it returns, if by may ask for it and
	// record, which is told what will be done, has no error. Errors are fault.From's to
	// classify.
	Revoke(ctx context.Context, by revoke.By, q revoke.Request, record func(what string) error) (*revoke.Answer, error)
}

var revokeMethod = &endpoint{name: "v1.Revoke", rpc: mayflyv1.Revocation_Revoke_FullMethodName,
	verb: http.MethodPost, path: "/api/v1/mayfly/revocations", act: "revoke", limit: limitAddress}

// revocation is the service mayfly.v1.Revocation on one edge.
type revocation struct {
	mayflyv1.UnimplementedRevocationServer
	server *Server
	edge   edge
}

// Revoke answers once what it says is on record and durable.
func (v revocation) Revoke(ctx context.Context, r *mayflyv1.RevokeRequest) (*mayflyv1.RevokeResponse, error) {
	return serve(ctx, v.server, v.edge, revokeMethod, func(ctx context.Context, c *call) (*mayflyv1.RevokeResponse, error) {
		if most := v.server.config.Limits.BodyBytes; proto.Size(r) > most {
			return nil, tooLarge(fault.BodyTooLarge, "the request", most)
		}
		by, err := v.server.revoker(ctx, c, r.GetRight())
		if err != nil {
			return nil, err
		}
		q := revocationRequest(r)
		a, err := v.server.revoking.Revoke(ctx, by, q, func(what string) error { return v.server.record(ctx, c, what, q.DryRun) })
		if err != nil {
			return nil, err
		}
		return revocationAnswer(a), nil
	})
}

// revoker is who asks, by the right that they name.
func (s *Server) revoker(ctx context.Context, c *call, right mayflyv1.Right) (revoke.By, error) {
	switch right {
	case mayflyv1.Right_RIGHT_UNSPECIFIED:
		g, err := s.grant(ctx, access.Administer)
		c.grant = g
		return revoke.Administrator(g), err
	case mayflyv1.Right_RIGHT_KEY:
		return revoke.KeyHolder(), nil
	case mayflyv1.Right_RIGHT_SELF_SERVICE:
		token := bearer(ctx)
		if f := s.checkToken(token); f != nil {
			return revoke.By{}, f
		}
		who, err := s.identity.Authenticate(identity.WithClient(ctx, network(peerAddress(ctx))), token)
		if err != nil {
			errors.As(err, &c.refused)
			return revoke.By{}, err
		}
		c.who = who
		if f := s.metrics.limited(s.live.Load().limiters.issuance(who, s.now())); f != nil {
			return revoke.By{}, f
		}
		return revoke.Holder(who), nil
	}
	return revoke.By{}, fault.New(fault.RequestMalformed, "the right is none that this CA knows: see /openapi.json")
}

// record has the act on record before it is done.
func (s *Server) record(ctx context.Context, c *call, what string, dry bool) error {
	e := audit.Event{Type: audit.Admin, Time: s.now(), RequestID: requestid.From(ctx), Act: c.act, What: what, RemoteAddr: remote(ctx), Method: c.name}
	if dry {
		e.Act += " (dry run)"
	}
	c.identify(&e)
	return audit.Trail{Recorder: s.auditor, Now: s.now, Logger: s.logger}.Record(ctx, e)
}

func revocationRequest(r *mayflyv1.RevokeRequest) revoke.Request {
	q := revoke.Request{
		Certificates: r.GetCertificates(), Serial: r.GetSerial(), Authority: r.GetAuthority(), Approve: r.GetApprove(),
		Reason: revoke.Reason(r.GetReason()), Comment: r.GetComment(), Reference: r.GetReference(),
		DryRun: r.GetDryRun(), Count: int(r.GetCount()), Signature: r.GetSignature(),
	}
	if f := r.GetFind(); f != nil {
		q.Find = &revoke.Query{Where: f.GetWhere(), From: moment(f.GetFrom()), Until: moment(f.GetUntil())}
	}
	return q
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func revocationAnswer(a *revoke.Answer) *mayflyv1.RevokeResponse {
	out := &mayflyv1.RevokeResponse{
		Count:      uint32(cmp.Or(len(a.Statements), len(a.Found))), // #nosec G115 -- bounded by package revoke
		Checkpoint: string(a.Checkpoint), Pending: a.Pending,
	}
	for _, f := range a.Found {
		out.Found = append(out.Found, &mayflyv1.RevocableCertificate{
			Authority: f.Authority, Serial: f.Serial, NotBefore: timestamppb.New(f.NotBefore), CertificateFingerprint: f.Fingerprint,
			Issuer: f.Issuer, San: f.SAN, SanType: f.SANType,
		})
	}
	for i, s := range a.Statements {
		one := &mayflyv1.RevocationStatement{Statement: string(s)}
		if i < len(a.Proofs) {
			one.Proof = a.Proofs[i]
		}
		out.Statements = append(out.Statements, one)
	}
	return out
}

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
