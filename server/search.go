package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/fault"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

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
		verb: http.MethodGet, path: "/api/v1/mayfly/certificates", private: true, limit: limitAddress}
	tellMethod = &endpoint{name: "v1.Tell", rpc: mayflyv1.Index_Tell_FullMethodName,
		verb: http.MethodPost, path: "/api/v1/mayfly/artifacts", private: true, limit: limitAddress}
	firstUsesMethod = &endpoint{name: "v1.FirstUses", rpc: mayflyv1.Index_FirstUses_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/mayfly/first-uses", private: true, limit: limitAddress}
)

// searching is the service mayfly.v1.Index on one edge, for those who may read. A page is
// no larger than a request may be: the memory law has that much for each.
type searching struct {
	mayflyv1.UnimplementedIndexServer
	server *Server
	edge   edge
}

func asReader[In, Out any](ctx context.Context, v searching, m *endpoint, r *In, answer func(*Searching, context.Context, *In) (*Out, error)) (*Out, error) {
	return serve(ctx, v.server, v.edge, m, func(ctx context.Context, _ *call) (*Out, error) {
		s := v.server
		if s.index == nil {
			return nil, fault.New(fault.RouteUnknown, "this CA keeps no index of what it issued; its operators set `store` in the configuration to have one")
		}
		if _, err := s.grant(ctx, access.Read); err != nil {
			return nil, err
		}
		return answer(&Searching{Index: s.index, Now: s.now, Most: s.config.Limits.BodyBytes}, ctx, r)
	})
}

func (v searching) Search(ctx context.Context, r *mayflyv1.SearchRequest) (*mayflyv1.SearchResponse, error) {
	return asReader(ctx, v, searchMethod, r, (*Searching).Search)
}

func (v searching) Tell(ctx context.Context, r *mayflyv1.TellRequest) (*mayflyv1.TellResponse, error) {
	return asReader(ctx, v, tellMethod, r, (*Searching).Tell)
}

func (v searching) FirstUses(ctx context.Context, r *mayflyv1.FirstUsesRequest) (*mayflyv1.FirstUsesResponse, error) {
	return asReader(ctx, v, firstUsesMethod, r, (*Searching).FirstUses)
}
