package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// served is the index of a CA that answers.
type served struct {
	http        *http.Client
	base, token string
}

func (s served) ask(ctx context.Context, path string, q url.Values, body []byte, into any) error {
	answer, err := client.API(ctx, s.http, client.Retry{}, s.base, path, q, body, s.token)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fail("check the URL", "the CA's answer isn't an index's")
	}
	return nil
}

func (s served) search(ctx context.Context, q url.Values) (rows []map[string]string, next string, err error) {
	var page struct {
		Certificates []struct {
			Fields map[string]string `json:"fields"`
		} `json:"certificates"`
		Next string `json:"next"`
	}
	err = s.ask(ctx, "certificates", q, nil, &page)
	for _, c := range page.Certificates {
		rows = append(rows, c.Fields)
	}
	return rows, page.Next, err
}

func (s served) firstUses(ctx context.Context, q url.Values) (rows []map[string]string, next string, err error) {
	var page struct {
		FirstUses []map[string]string `json:"firstUses"` // numbers are strings in protobuf's JSON
	}
	identity, err := identityOf(q)
	if err != nil {
		return nil, "", err
	}
	err = s.ask(ctx, "first-uses", url.Values{"identity": {identity}, "after": {cmp.Or(q.Get("cursor"), "0")}}, nil, &page)
	if n := len(page.FirstUses); n > 0 {
		next = page.FirstUses[n-1]["id"]
	}
	return page.FirstUses, next, err
}

func (s served) tell(ctx context.Context, bundle []byte) (string, error) {
	var answer struct {
		Serial string `json:"serial"`
	}
	body, err := json.Marshal(map[string]string{"bundle": string(bundle)})
	if err != nil {
		return "", err
	}
	err = s.ask(ctx, "artifacts", nil, body, &answer)
	return answer.Serial, err
}

// identityOf is the one condition that first uses can have.
func identityOf(q url.Values) (string, error) {
	where := q["where"]
	if len(where) == 0 {
		return "", nil
	}
	identity, found := strings.CutPrefix(where[0], "identity=")
	if !found || len(where) > 1 {
		return "", usage("give one condition, identity=https://github.com/acme/tool, or none", "--first-uses looks at identities")
	}
	return identity, nil
}

// stored is an index in a store that is opened here.
type stored struct{ *index.Index }

// public is an error as the CA would have answered it.
func public(err error) error {
	switch f := fault.From(err); {
	case err == nil:
		return nil
	case f.Kind() == fault.Malformed:
		return &failure{code: exitUsage, fix: "docs/search.md lists the fields", err: fmt.Errorf("%s", f.Public)}
	default:
		return &failure{code: exitUnavailable, err: err}
	}
}

func (s stored) search(ctx context.Context, q url.Values) (rows []map[string]string, next string, err error) {
	query := index.Query{Revoked: q.Has("revoked"), Cursor: q.Get("cursor")}
	query.From, _ = time.Parse(time.RFC3339, q.Get("from")) // they were checked
	query.To, _ = time.Parse(time.RFC3339, q.Get("to"))
	for _, text := range q["where"] {
		f, err := index.ParseFilter(text)
		if err != nil {
			return nil, "", public(err)
		}
		query.Filters = append(query.Filters, f)
	}
	page, err := s.Search(ctx, query)
	for _, c := range page.Certificates {
		rows = append(rows, c.Named())
	}
	return rows, page.Next, public(err)
}

func (s stored) firstUses(ctx context.Context, q url.Values) (rows []map[string]string, next string, err error) {
	identity, err := identityOf(q)
	if err != nil {
		return nil, "", err
	}
	after, _ := strconv.ParseInt(q.Get("cursor"), 10, 64)
	events, err := s.Events(ctx, after, identity, 100)
	for _, e := range events {
		next = strconv.FormatInt(e.ID, 10)
		rows = append(rows, map[string]string{
			"id": next, "kind": e.Kind, "identity": e.Identity, "value": e.Value, "log": e.Log, "index": strconv.FormatUint(e.Index, 10), "serial": e.Serial, "happened": e.Happened.Format(time.RFC3339),
		})
	}
	return rows, next, public(err)
}

func (s stored) tell(ctx context.Context, bundle []byte) (string, error) {
	signed, err := index.ParseBundle(bundle)
	if err == nil {
		err = s.Tell(ctx, signed, time.Now())
	}
	if err != nil {
		return "", public(err)
	}
	return signed.Certificate.SerialNumber.Text(16), nil
}
