package main

import (
	"context"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
	"github.com/mayfly-ca/mayfly/server"
)

// search is the command line of `mayfly search`.
type search struct {
	request
	store, certificate, bundle string
	image                      string
	from, to                   time.Time
	since                      time.Duration
	revoked, firstUses         bool
	limit                      int
	csv                        bool
}

func newSearchCommand(streams streams) *cobra.Command {
	o := search{request: request{streams: streams}}
	cmd := &cobra.Command{
		Use: "search [CONDITION...]", Short: "Find who got what: certificates by identity, workflow run, digest, time",
		Long: `Finds certificates in a CA's index, the newest first: those that fit every
condition. A condition is FIELD=VALUE, or FIELD^=BEGINNING; docs/search.md has the
fields. For short: alice@example.com is san=alice@example.com, @example.com is
domain=example.com, sha256:… is digest=…, and a URL is san^=URL.

The digest of an artifact is found once a bundle has shown what was signed:
--bundle FILE tells the CA, and finds the certificate. --certificate finds an
entry by the final certificate, --image those of an image's signatures. --first-uses lists what an identity that was known
used for the first time: a workflow, a runner, an issuer.

It asks the CA, which wants a token of a reader (access.readers), or reads a store
itself with --store. Exit code 1 says that nothing was found.`,
		Example: `  mayfly search alice@example.com --since 24h
  mayfly search source_repository_uri=https://github.com/acme/tool build_trigger=push --csv
  mayfly search run_invocation_uri^=https://github.com/acme/tool/actions/runs/17
  mayfly search --bundle tool.sigstore.json --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			defer o.begin(cmd)()
			return classify(o.run(cmd.Context(), args))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.ca, "ca", "http://127.0.0.1:5555", "base URL of the CA; MAYFLY_CA names it too")
	f.StringVar(&o.store, "store", "", "read this store in place of the CA's: a SQLite file or a postgres:// URL")
	f.StringVar(&o.tokenFile, "token-file", "", "read the reader's identity token from a file")
	f.StringVar(&o.tokenEnv, "token-env", "", "read the reader's identity token from the environment variable of this name")
	f.BoolVar(&o.allowHTTP, "allow-http", false, "send the token over unencrypted http beyond this machine")
	f.StringVar(&o.certificate, "certificate", "", "find this certificate, in PEM or DER")
	f.StringVar(&o.bundle, "bundle", "", "tell what this Sigstore bundle shows, and find its certificate")
	f.StringVar(&o.image, "image", "", "find the certificates that signed this container image, as its registry has them")
	timeFlag(cmd, &o.from, "from", "only certificates that begin at this time (RFC 3339) or later")
	timeFlag(cmd, &o.to, "to", "only certificates that begin before this time (RFC 3339)")
	f.DurationVar(&o.since, "since", 0, "only certificates of so long until now")
	f.BoolVar(&o.revoked, "revoked", false, "only what is revoked")
	f.BoolVar(&o.firstUses, "first-uses", false, "list first uses, of the identity in the condition identity=…, or of all")
	f.IntVar(&o.limit, "limit", 1000, "how many at most; 0 for all")
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.BoolVar(&o.csv, "csv", false, "print CSV with every field")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	cmd.MarkFlagsMutuallyExclusive("from", "since")
	cmd.MarkFlagsMutuallyExclusive("token-file", "token-env")
	return cmd
}

// run reads top to bottom what the command does.
func (o *search) run(ctx context.Context, args []string) error {
	query, err := o.query(args)
	if err != nil {
		return err
	}
	in, done, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	if o.bundle != "" {
		text, err := readInput(nil, o.bundle)
		if err != nil {
			return err
		}
		told, err := in.Tell(ctx, &mayflyv1.TellRequest{Bundle: string(text)})
		if err != nil {
			return err
		}
		query.Where = append(query.Where, "serial="+told.GetSerial())
	}
	var others [][]string // conditions of the next certificate
	if o.image != "" {
		certs, err := o.signers(ctx, o.image)
		if err != nil {
			return err
		}
		slices.SortFunc(certs, func(a, b *x509.Certificate) int { return b.NotBefore.Compare(a.NotBefore) })
		for _, c := range certs {
			others = append(others, slices.Concat(query.Where, whereOf(c)))
		}
		query.Where, others = others[0], others[1:]
	}
	look, columns := next(func(ctx context.Context) (rows []map[string]string, more bool, err error) {
		page, err := in.Search(ctx, query)
		for _, c := range page.GetCertificates() {
			rows = append(rows, c.GetFields())
		}
		query.Cursor = page.GetNext()
		if more = query.Cursor != "" || len(others) > 0; query.Cursor == "" && more {
			query.Where, others = others[0], others[1:]
		}
		return rows, more, err
	}), []string{"not_before", "san", "issuer", "serial", "log", "index"}
	switch {
	case o.firstUses:
		look, columns = firstUses(in, query.Where), []string{"happened", "kind", "identity", "value", "serial", "log", "index"}
	case o.csv:
		columns = slices.Concat([]string{"not_before", "not_after", "logged", "index", "revoked", "reason"}, index.Shown)
	}
	write, flush := o.output(columns)
	count := 0
	for more := true; more; {
		var rows []map[string]string
		if rows, more, err = look(ctx); err != nil {
			return err
		}
		if o.limit > 0 && count+len(rows) >= o.limit {
			rows, more = rows[:o.limit-count], false
		}
		count += len(rows)
		for _, row := range rows {
			if err := write(row); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil || count > 0 {
		return err
	}
	fix := "docs/search.md lists the fields; /readyz?verbose of the CA says how far its index has come"
	if strings.Contains(strings.Join(query.Where, " "), "digest") {
		fix = "a digest is known once a bundle has shown it: mayfly search --bundle FILE"
	}
	return fail(fix, "nothing was found")
}

// next gives the next rows, and whether there may be more.
type next func(ctx context.Context) (rows []map[string]string, more bool, err error)

func firstUses(in mayflyv1.IndexServer, where []string) next {
	q := &mayflyv1.FirstUsesRequest{}
	return func(ctx context.Context) (rows []map[string]string, more bool, err error) {
		for _, w := range where {
			identity, found := strings.CutPrefix(w, "identity=")
			if q.Identity = identity; !found || len(where) > 1 {
				return nil, false, usage("give one condition, identity=https://github.com/acme/tool, or none", "--first-uses looks at identities")
			}
		}
		page, err := in.FirstUses(ctx, q)
		for _, u := range page.GetFirstUses() {
			q.After = u.GetId()
			rows = append(rows, map[string]string{
				"happened": u.GetHappened().AsTime().Format(time.RFC3339), "kind": u.GetKind(), "identity": u.GetIdentity(), "value": u.GetValue(),
				"serial": u.GetSerial(), "log": u.GetLog(), "index": strconv.FormatInt(u.GetIndex(), 10),
			})
		}
		return rows, len(rows) > 0, err
	}
}

// output writes rows in the form that was asked for.
func (o *search) output(columns []string) (write func(map[string]string) error, flush func() error) {
	values := func(row map[string]string) []string {
		all := make([]string, len(columns))
		for i, name := range columns {
			all[i] = row[name]
		}
		return all
	}
	switch {
	case o.json:
		return func(row map[string]string) error { return json.NewEncoder(o.Out).Encode(row) }, func() error { return nil }
	case o.csv:
		c := csv.NewWriter(o.Out)
		err := c.Write(columns)
		return func(row map[string]string) error { return errors.Join(err, c.Write(values(row))) },
			func() error { c.Flush(); return errors.Join(err, c.Error()) }
	}
	t, begun := newTable(o.Out), false
	return func(row map[string]string) error {
		if !begun {
			begun = true
			t.row(strings.Split(strings.ToUpper(strings.ReplaceAll(strings.Join(columns, " "), "_", "-")), " ")...)
		}
		if log := row["log"]; len(log) > 8 {
			row["log"] = log[:8]
		}
		t.row(values(row)...)
		return nil
	}, t.Flush
}

// query is the search as the API has it.
func (o *search) query(args []string) (*mayflyv1.SearchRequest, error) {
	q := &mayflyv1.SearchRequest{Revoked: o.revoked}
	for _, arg := range args {
		q.Where = append(q.Where, index.Condition(arg))
	}
	if o.certificate != "" {
		certs, err := readCertificates(o.In, o.certificate)
		if err != nil {
			return nil, err
		}
		q.Where = append(q.Where, whereOf(certs[0])...)
	}
	if o.since > 0 {
		o.from = time.Now().Add(-o.since)
	}
	q.From, q.To = stampOf(o.from), stampOf(o.to)
	return q, nil
}

// whereOf are the conditions by which a certificate is found, anybody's.
func whereOf(c *x509.Certificate) []string {
	if len(c.AuthorityKeyId) == 0 {
		return []string{"serial=" + c.SerialNumber.Text(16)}
	}
	return []string{"serial=" + c.SerialNumber.Text(16), fmt.Sprintf("authority=%x", c.AuthorityKeyId)}
}

// open gives what is searched: the index of a CA, or one in a store.
func (o *search) open(ctx context.Context) (in mayflyv1.IndexServer, done func(), err error) {
	if path := string(store.Parse(o.store).Path); path != "" {
		if _, err := os.Stat(path); err != nil {
			return nil, nil, fail("name the file of store.path in the CA's configuration, or of mayfly monitor", "the store: %w", err)
		}
	}
	if o.store != "" {
		i, done, err := openIndex(ctx, o.store)
		return &server.Searching{Index: i, Now: time.Now}, done, err
	}
	if _, err := client.CheckURL("the CA", o.ca, o.allowHTTP); err != nil {
		return nil, nil, err
	}
	c := &remoteIndex{request: &o.request}
	if o.tokenFile != "" || o.tokenEnv != "" {
		c.as, _, err = client.FindToken(ctx, o.sources())
	}
	return c, func() {}, err
}

// openIndex opens the index in a store that a command line names.
func openIndex(ctx context.Context, named string) (i *index.Index, done func(), err error) {
	c, f := store.Parse(named), setting.Faults{}
	c.Check("", &f)
	if err := f.Err(); err != nil {
		return nil, nil, usage("name a SQLite file, or postgres://user@host/database; a password goes into PGPASSWORD or ~/.pgpass", "--store: %w", err)
	}
	db, err := store.Open(ctx, c)
	if err != nil {
		return nil, nil, &failure{code: exitUnavailable, err: err}
	}
	i = index.New()
	if err := i.Open(ctx, db); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return i, func() { _ = db.Close() }, nil
}

// remoteIndex is the index of a CA, asked over REST.
type remoteIndex struct {
	mayflyv1.UnimplementedIndexServer
	*request
	as *client.Token // nil where none is named
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
	return out, r.api(ctx, "certificates", q, nil, out, r.as)
}

func (r *remoteIndex) FirstUses(ctx context.Context, f *mayflyv1.FirstUsesRequest) (*mayflyv1.FirstUsesResponse, error) {
	out, q := &mayflyv1.FirstUsesResponse{}, url.Values{"identity": {f.GetIdentity()}, "after": {strconv.FormatInt(f.GetAfter(), 10)}}
	return out, r.api(ctx, "first-uses", q, nil, out, r.as)
}

func (r *remoteIndex) Tell(ctx context.Context, t *mayflyv1.TellRequest) (*mayflyv1.TellResponse, error) {
	out := &mayflyv1.TellResponse{}
	return out, r.api(ctx, "artifacts", nil, t, out, r.as)
}
