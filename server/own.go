package server

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// The services of Mayfly's own API, for those who have a right beside that to
// certificates: mayfly.v1.Index and mayfly.v1.Revocation.

// grant finds out whether who asks has a right.
func (s *Server) grant(ctx context.Context, want access.Right) (access.Grant, error) {
	token, from := bearer(ctx), ClientAddress(ctx)
	if s.with.Access == nil {
		return access.Grant{Right: want}, errors.New("server: there is nobody to ask for rights")
	}
	if f := s.checkToken(token); f != nil && token != "" {
		return access.Grant{Right: want}, f
	}
	return s.with.Access.Grant(identity.WithClient(ctx, network(from)), want, token, from)
}

// Searching answers the methods of mayfly.v1.Index out of an index, to whoever asks. Its
// errors are *fault.Errors.
type Searching struct {
	mayflyv1.UnimplementedIndexServer
	Index *index.Index
	Now   func() time.Time
	Most  int // bytes of a page
}

// Search answers with a page.
func (s *Searching) Search(ctx context.Context, r *mayflyv1.SearchRequest) (*mayflyv1.SearchResponse, error) {
	q := index.Query{From: moment(r.GetFrom()), To: moment(r.GetTo()), Revoked: r.GetRevoked(), Limit: int(r.GetLimit()), Cursor: r.GetCursor(), Most: s.Most}
	for _, text := range r.GetWhere() {
		f, err := index.ParseFilter(text)
		if err != nil {
			return nil, err
		}
		q.Filters = append(q.Filters, f)
	}
	page, err := s.Index.Search(ctx, q)
	out := &mayflyv1.SearchResponse{Next: page.Next}
	for _, c := range page.Certificates {
		out.Certificates = append(out.Certificates, &mayflyv1.Certificate{Fields: c.Named()})
	}
	return out, err
}

// Tell answers once what the bundle shows is kept.
func (s *Searching) Tell(ctx context.Context, r *mayflyv1.TellRequest) (*mayflyv1.TellResponse, error) {
	signed, err := index.ParseBundle([]byte(r.GetBundle()))
	if err == nil {
		err = s.Index.Tell(ctx, signed, s.Now())
	}
	if err != nil {
		return nil, err
	}
	return &mayflyv1.TellResponse{Serial: signed.Certificate.SerialNumber.Text(16), Digests: signed.Digests}, nil
}

// firstUsesPage is how many first uses one answer has.
const firstUsesPage = 100

// FirstUses answers with a page of events.
func (s *Searching) FirstUses(ctx context.Context, r *mayflyv1.FirstUsesRequest) (*mayflyv1.FirstUsesResponse, error) {
	events, err := s.Index.Events(ctx, r.GetAfter(), strings.ToValidUTF8(r.GetIdentity(), ""), firstUsesPage)
	out := &mayflyv1.FirstUsesResponse{}
	for _, e := range events {
		out.FirstUses = append(out.FirstUses, &mayflyv1.FirstUse{
			Id: e.ID, Kind: e.Kind, Identity: e.Identity, Value: e.Value, Log: e.Log, Index: int64(e.Index), Serial: e.Serial, // #nosec G115 -- of a log
			Happened: timestamppb.New(e.Happened),
		})
	}
	return out, err
}

var (
	searchMethod = &endpoint{name: "v1.Search", rpc: mayflyv1.Index_Search_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/mayfly/certificates", reads: true, limit: limitAddress}
	tellMethod = &endpoint{name: "v1.Tell", rpc: mayflyv1.Index_Tell_FullMethodName,
		verb: http.MethodPost, path: "/api/v1/mayfly/artifacts", reads: true, limit: limitAddress}
	firstUsesMethod = &endpoint{name: "v1.FirstUses", rpc: mayflyv1.Index_FirstUses_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/mayfly/first-uses", reads: true, limit: limitAddress}
)

// mayRead has an error where who asks may not search, or there is nothing to search in.
func (s *Server) mayRead(ctx context.Context) error {
	if s.with.Index == nil {
		return fault.New(fault.RouteUnknown, "this CA keeps no index of what it issued; its operators set `store` in the configuration to have one")
	}
	_, err := s.grant(ctx, access.Read)
	return err
}

var revokeMethod = &endpoint{name: "v1.Revoke", rpc: mayflyv1.Revocation_Revoke_FullMethodName,
	verb: http.MethodPost, path: "/api/v1/mayfly/revocations", act: "revoke", limit: limitAddress}

// revocation is the service mayfly.v1.Revocation.
type revocation struct {
	mayflyv1.UnimplementedRevocationServer
	server *Server
}

// Revoke answers once what it says is on record and durable.
func (v revocation) Revoke(ctx context.Context, r *mayflyv1.RevokeRequest) (*mayflyv1.RevokeResponse, error) {
	s, c := v.server, callOf(ctx)
	if most := s.config.Limits.BodyBytes; proto.Size(r) > most {
		return nil, tooLarge(fault.BodyTooLarge, "the request", most)
	}
	by, err := s.revoker(ctx, c, r.GetRight())
	if err != nil {
		return nil, err
	}
	q := revocationRequest(r)
	a, err := s.with.Revocation.Revoke(ctx, by, q, func(what string) error { return s.record(ctx, c, what, q.DryRun) })
	if err != nil {
		return nil, err
	}
	return revocationAnswer(a), nil
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
		who, err := s.with.Identity.Authenticate(identity.WithClient(ctx, network(ClientAddress(ctx))), token)
		if err != nil {
			errors.As(err, &c.refused)
			return revoke.By{}, err
		}
		c.who = who
		if f := s.metrics.limited(s.live.Load().limiters.issuance(who, s.with.Now())); f != nil {
			return revoke.By{}, f
		}
		return revoke.Holder(who), nil
	}
	return revoke.By{}, fault.New(fault.RequestMalformed, "the right is none that this CA knows: see /openapi.json")
}

// record has the act on record before it is done.
func (s *Server) record(ctx context.Context, c *call, what string, dry bool) error {
	e := audit.Event{Type: audit.Admin, Time: s.with.Now(), RequestID: requestid.From(ctx), Act: c.act, What: what, RemoteAddr: remote(ctx), Method: c.name}
	if dry {
		e.Act += " (dry run)"
	}
	c.identify(&e)
	return audit.Trail{Recorder: s.with.Auditor, Now: s.with.Now, Logger: s.with.Logger}.Record(ctx, e)
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
