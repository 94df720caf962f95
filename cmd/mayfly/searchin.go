package main

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// remoteIndex is the index of a CA, asked over REST.
type remoteIndex struct {
	mayflyv1.UnimplementedIndexServer
	http  *http.Client
	base  string
	token *client.Token
}

func (r *remoteIndex) ask(ctx context.Context, path string, q url.Values, body []byte, into proto.Message) error {
	answer, err := client.API(ctx, r.http, client.Retry{}, r.base, path, q, body, r.token)
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(answer, into); err != nil {
		return fail("check the URL", "the CA's answer isn't an index's")
	}
	return nil
}

func (r *remoteIndex) Search(ctx context.Context, s *mayflyv1.SearchRequest) (*mayflyv1.SearchResponse, error) {
	q := url.Values{"where": s.GetWhere(), "revoked": {strconv.FormatBool(s.GetRevoked())}, "cursor": {s.GetCursor()}}
	if s.GetFrom() != nil {
		q.Set("from", s.GetFrom().AsTime().Format(time.RFC3339))
	}
	if s.GetTo() != nil {
		q.Set("to", s.GetTo().AsTime().Format(time.RFC3339))
	}
	out := &mayflyv1.SearchResponse{}
	return out, r.ask(ctx, "certificates", q, nil, out)
}

func (r *remoteIndex) FirstUses(ctx context.Context, f *mayflyv1.FirstUsesRequest) (*mayflyv1.FirstUsesResponse, error) {
	out := &mayflyv1.FirstUsesResponse{}
	return out, r.ask(ctx, "first-uses", url.Values{"identity": {f.GetIdentity()}, "after": {strconv.FormatInt(f.GetAfter(), 10)}}, nil, out)
}

func (r *remoteIndex) Tell(ctx context.Context, t *mayflyv1.TellRequest) (*mayflyv1.TellResponse, error) {
	body, err := protojson.Marshal(t)
	if err != nil {
		return nil, err
	}
	out := &mayflyv1.TellResponse{}
	return out, r.ask(ctx, "artifacts", nil, body, out)
}
