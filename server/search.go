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

// Index finds what was issued. index.Index does. Its errors are *fault.Errors.
type Index interface {
	Search(ctx context.Context, q index.Query) (index.Page, error)
	Tell(ctx context.Context, s index.Signed, now time.Time) error
	Events(ctx context.Context, after int64, identity string, limit int) ([]index.Event, error)
}

var (
	searchMethod = &endpoint{name: "v1.Search", rpc: mayflyv1.Index_Search_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/mayfly/certificates", private: true, limit: (*limiters).request}
	tellMethod = &endpoint{name: "v1.Tell", rpc: mayflyv1.Index_Tell_FullMethodName,
		verb: http.MethodPost, path: "/api/v1/mayfly/artifacts", private: true, limit: (*limiters).request}
	firstUsesMethod = &endpoint{name: "v1.FirstUses", rpc: mayflyv1.Index_FirstUses_FullMethodName,
		verb: http.MethodGet, path: "/api/v1/mayfly/first-uses", private: true, limit: (*limiters).request}
)

// searching is the service mayfly.v1.Index on one edge.
type searching struct {
	mayflyv1.UnimplementedIndexServer
	server *Server
	edge   edge
}

// asReader serves a method to those who may read.
func asReader[T any](ctx context.Context, v searching, m *endpoint, answer func(context.Context) (*T, error)) (*T, error) {
	return serve(ctx, v.server, v.edge, m, func(ctx context.Context, _ *call) (*T, error) {
		if v.server.index == nil {
			return nil, fault.New(fault.RouteUnknown, "this CA keeps no index of what it issued; its operators set `store` in the configuration to have one")
		}
		if _, err := v.server.grant(ctx, access.Read); err != nil {
			return nil, err
		}
		return answer(ctx)
	})
}

// Search answers with a page that is no larger than a request may be: the memory law
// has that much for each.
func (v searching) Search(ctx context.Context, r *mayflyv1.SearchRequest) (*mayflyv1.SearchResponse, error) {
	return asReader(ctx, v, searchMethod, func(ctx context.Context) (*mayflyv1.SearchResponse, error) {
		q := index.Query{Revoked: r.GetRevoked(), Limit: int(r.GetLimit()), Cursor: r.GetCursor(), From: timeOf(r.GetFrom()), To: timeOf(r.GetTo())}
		for _, text := range r.GetWhere() {
			f, err := index.ParseFilter(text)
			if err != nil {
				return nil, err
			}
			q.Filters = append(q.Filters, f)
		}
		page, err := v.server.index.Search(ctx, q)
		if err != nil {
			return nil, err
		}
		out, size := &mayflyv1.SearchResponse{Next: page.Next}, 0
		for i, c := range page.Certificates {
			fields := c.Named()
			for name, value := range fields {
				size += len(name) + len(value)
			}
			if size > v.server.config.Limits.BodyBytes && i > 0 {
				out.Next = page.Certificates[i-1].Cursor()
				break
			}
			out.Certificates = append(out.Certificates, &mayflyv1.Certificate{Fields: fields})
		}
		return out, nil
	})
}

// Tell answers once what the bundle shows is kept.
func (v searching) Tell(ctx context.Context, r *mayflyv1.TellRequest) (*mayflyv1.TellResponse, error) {
	return asReader(ctx, v, tellMethod, func(ctx context.Context) (*mayflyv1.TellResponse, error) {
		signed, err := index.ParseBundle([]byte(r.GetBundle()))
		if err != nil {
			return nil, err
		}
		if err := v.server.index.Tell(ctx, signed, v.server.now()); err != nil {
			return nil, err
		}
		return &mayflyv1.TellResponse{Serial: signed.Certificate.SerialNumber.Text(16), Digests: signed.Digests}, nil
	})
}

// firstUsesPage is how many first uses one answer has.
const firstUsesPage = 100

// FirstUses answers with a page of events.
func (v searching) FirstUses(ctx context.Context, r *mayflyv1.FirstUsesRequest) (*mayflyv1.FirstUsesResponse, error) {
	return asReader(ctx, v, firstUsesMethod, func(ctx context.Context) (*mayflyv1.FirstUsesResponse, error) {
		events, err := v.server.index.Events(ctx, r.GetAfter(), strings.ToValidUTF8(r.GetIdentity(), ""), firstUsesPage)
		if err != nil {
			return nil, err
		}
		out := &mayflyv1.FirstUsesResponse{}
		for _, e := range events {
			out.FirstUses = append(out.FirstUses, &mayflyv1.FirstUse{
				Id: e.ID, Kind: e.Kind, Identity: e.Identity, Value: e.Value, Log: e.Log, Index: int64(e.Index), Serial: e.Serial, // #nosec G115 -- of a log
				Happened: timestamppb.New(e.Happened),
			})
		}
		return out, nil
	})
}

// timeOf is a time, zero where there is none.
func timeOf(t *timestamppb.Timestamp) (at time.Time) {
	if t != nil {
		at = t.AsTime()
	}
	return at
}
