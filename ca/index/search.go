package index

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/store"
)

// What one search may cost. A page is as long as was asked for, at most maxPage; where
// conditions fit so many subjects that their certificates aren't looked up one by one,
// certificates are read from the newest on, scan at once, and a page may have fewer
// then, or none, and go on all the same.
const (
	maxPage     = 100
	fewSubjects = 200
	fewRows     = 1000
	scan        = 4000
	maxFilters  = 16
	maxFilter   = 4096 // bytes of a value that is searched for
)

// Filter is one condition: a field has a value, or begins with it.
type Filter struct {
	Field  string
	Value  string
	Prefix bool
}

// ParseFilter reads `field=value`, or `field^=beginning`. The error is a *fault.Error.
func ParseFilter(text string) (Filter, error) {
	field, value, found := strings.Cut(text, "=")
	field, prefix := strings.CutSuffix(field, "^")
	if !found {
		return Filter{}, fault.New(fault.RequestMalformed, "a condition is field=value, or field^=beginning")
	}
	if slices.Contains([]string{"digest", "serial", "authority", "key_fingerprint", "certificate_fingerprint", "log"}, field) {
		value = strings.ToLower(strings.TrimPrefix(value, "sha256:")) // hexadecimal
	}
	return Filter{field, value, prefix}, nil
}

// Condition spells out what people write for short: an address, @ and a domain, a digest,
// the beginning of a URI.
func Condition(short string) string {
	switch {
	case strings.HasPrefix(short, "sha256:"):
		return "digest=" + short
	case strings.HasPrefix(short, "https://"), strings.HasPrefix(short, "http://"), strings.HasPrefix(short, "spiffe://"):
		return "san^=" + short
	case strings.Contains(short, "="):
		return short
	case strings.HasPrefix(short, "@"):
		return "domain=" + strings.ToLower(short[1:])
	default:
		return "san=" + short
	}
}

// Query is what is searched for: what fits all of it.
type Query struct {
	Filters []Filter
	// From and To bound not_before: not before From, and before To. Zero sets no bound.
	From, To time.Time
	Revoked  bool // only what is revoked
	Limit    int  // certificates; 0: 100
	Most     int  // bytes of text, but for the first certificate; 0: no bound
	Cursor   string
}

// Certificate is a certificate that was found. Fields are by the names of [Fields],
// those that have a value.
type Certificate struct {
	Index               uint64
	Fields              map[string]string // text
	Logged              time.Time
	NotBefore, NotAfter time.Time
	RevokedAt           time.Time // zero: it isn't
	RevokedReason       string

	id     int64
	values []string // of one that is decoded; by columns
}

// Named is everything by its name, as all that shows certificates has it.
func (c *Certificate) Named() map[string]string {
	all := maps.Clone(c.Fields)
	all["index"] = strconv.FormatUint(c.Index, 10)
	for name, t := range map[string]time.Time{"logged": c.Logged, "not_before": c.NotBefore, "not_after": c.NotAfter, "revoked": c.RevokedAt} {
		if !t.IsZero() {
			all[name] = t.Format(time.RFC3339)
		}
	}
	if c.RevokedReason != "" {
		all["reason"] = c.RevokedReason
	}
	return all
}

// Page is a part of what was found, the newest first.
type Page struct {
	Certificates []Certificate
	Next         string // the cursor of the next page; empty: there is none
}

// Of an artifact's fields the certificate's row has none: they are in a table of their own.
var ofArtifact = []string{"digest", "certificate_fingerprint"}

// ofCertificate are the fields in a certificate's row.
var ofCertificate = slices.Concat([]string{"serial", "key_fingerprint"}, ofRun)

// Shown are the names of a certificate's text, in the order in which it is shown, and
// Fields those of all that can be searched by.
var (
	Shown  = slices.Concat(ofCertificate[:1], ofSubject[1:], ofCertificate[1:], ofSubject[:1])
	Fields = slices.Concat(Shown, ofArtifact)
)

// condition is the SQL of a filter on one column of the table with that alias.
func (f Filter) condition() (table, where string, args []any, err error) {
	switch {
	case !slices.Contains(Fields, f.Field):
		return "", "", nil, fault.New(fault.RequestMalformed, "there is no field of that name; known: %s", strings.Join(Fields, ", "))
	case f.Value == "" || len(f.Value) > maxFilter || strings.ContainsRune(f.Value, 0) || !utf8.ValidString(f.Value):
		return "", "", nil, fault.New(fault.RequestMalformed, "the value for %s is empty, longer than %d bytes, or no text", f.Field, maxFilter)
	}
	for name, fields := range map[string][]string{"s": ofSubject, "c": ofCertificate, "a": ofArtifact} {
		if slices.Contains(fields, f.Field) {
			table = name
		}
	}
	column := table + "." + f.Field
	where, args = column+" = ?", []any{clip(f.Value)}
	if f.Prefix { // no text is after the last character of Unicode
		where, args = column+" >= ? AND "+column+" < ?", append(args, clip(f.Value)+"\U0010FFFF")
	}
	if table == "s" { // as the indexes have it
		where += " AND " + column + " <> ''"
	}
	return table, where, args, nil
}

// plan is a query in SQL.
type plan struct {
	ofSubject, ofRow, window  []string // conditions on subjects, on what else a row has, and on times
	args, rowArgs, windowArgs []any
	exact                     bool // a condition on the row alone finds few
	narrow                    []narrow
}

// narrow is a condition that may fit few certificates: what to count, and where these are
// from. Both have args.
type narrow struct {
	count, from string
	args        []any
}

// Search finds certificates. The error is a *fault.Error.
func (i *Index) Search(ctx context.Context, q Query) (Page, error) {
	db, err := i.open()
	if err != nil {
		return Page{}, err
	}
	if q.Limit <= 0 {
		q.Limit = maxPage
	}
	q.Limit = min(q.Limit, maxPage)
	p, err := q.plan()
	if err != nil {
		return Page{}, err
	}
	if len(p.ofSubject)+len(p.ofRow) > 0 {
		if err := i.searchable(); err != nil {
			return Page{}, err
		}
	}
	from, args, bounded, err := p.from(ctx, db, q.Limit+1)
	if err != nil {
		return Page{}, unavailable(err)
	}
	statement := "SELECT c.id, c.log_index, c.logged, c.not_before, c.not_after, r.revoked_at, COALESCE(r.reason, ''), " +
		"c.serial, c.key_fingerprint, c." + strings.Join(ofRun, ", c.") + ", s." + strings.Join(ofSubject, ", s.") +
		" FROM " + from + " CROSS JOIN subjects s LEFT JOIN revoked r ON r.serial = c.serial AND r.authority = s.authority" +
		where([]string{"s.id = c.subject"}, p.ofSubject, p.ofRow, p.window) + newestFirst // CROSS JOIN: SQLite begins with c
	rows, err := db.Query(ctx, statement, slices.Concat(args, p.args, p.rowArgs, p.windowArgs, []any{q.Limit + 1})...)
	found, err := collect(rows, err, (*Certificate).places)
	if err != nil {
		return Page{}, err
	}
	page := Page{Certificates: found}
	fits := min(len(found), q.Limit)
	for size, n := 0, 0; q.Most > 0 && n < fits; n++ {
		for name, value := range found[n].Fields {
			size += len(name) + len(value)
		}
		if size > q.Most {
			fits = max(n, 1)
		}
	}
	switch {
	case fits < len(found):
		page.Certificates = found[:fits]
		page.Next = cursor(found[fits-1].NotBefore.Unix(), found[fits-1].id)
	case bounded: // what was read may have ended before the certificates did
		var at, id int64
		err := db.QueryRow(ctx, "SELECT not_before, id FROM certificates c"+where(p.window)+" ORDER BY not_before DESC, id DESC LIMIT 1 OFFSET ?", append(slices.Clone(p.windowArgs), scan-1)...).Scan(&at, &id)
		if err == nil {
			page.Next = cursor(at, id)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return Page{}, unavailable(err)
		}
	}
	return page, nil
}

// Count is how many certificates of one issuer began in one hour.
type Count struct {
	Hour   time.Time
	Issuer string
	Number int
}

// Counts counts what began at a time or later, by hour and issuer, the oldest first. It
// reads all of that.
func (i *Index) Counts(ctx context.Context, since time.Time) ([]Count, error) {
	db, err := i.open()
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, "SELECT n.hour, s.issuer, CAST(SUM(n.number) AS BIGINT) FROM (SELECT subject, not_before / 3600 AS hour, COUNT(*) AS number FROM certificates WHERE not_before >= ? GROUP BY 1, 2) AS n "+
		"JOIN subjects s ON s.id = n.subject GROUP BY 1, 2 ORDER BY 1, 2", since.Unix())
	return collect(rows, err, func(c *Count) ([]any, func()) {
		var hour int64
		return []any{&hour, &c.Issuer, &c.Number}, func() { c.Hour = time.Unix(hour*3600, 0).UTC() }
	})
}

// plan checks a query. The error is a *fault.Error.
func (q Query) plan() (p plan, err error) {
	if len(q.Filters) > maxFilters {
		return p, fault.New(fault.RequestMalformed, "at most %d conditions can be asked for at once", maxFilters)
	}
	for _, f := range q.Filters {
		table, condition, args, err := f.condition()
		if err != nil {
			return p, err
		}
		switch table {
		case "s":
			p.ofSubject, p.args = append(p.ofSubject, condition), append(p.args, args...)
			continue
		case "c":
			p.exact = p.exact || !f.Prefix
			p.narrow = append(p.narrow, narrow{"certificates c WHERE " + condition, "(SELECT * FROM certificates c WHERE " + condition + ") AS c", args})
		case "a":
			some := "artifacts a WHERE " + condition
			p.narrow = append(p.narrow, narrow{some, "(SELECT * FROM certificates WHERE serial IN (SELECT a.serial FROM " + some + ")) AS c", args})
			condition = "(c.serial, s.authority) IN (SELECT a.serial, a.authority FROM " + some + ")"
		}
		p.ofRow, p.rowArgs = append(p.ofRow, condition), append(p.rowArgs, args...)
	}
	if q.Revoked {
		p.ofRow = append(p.ofRow, "r.serial IS NOT NULL")
		p.narrow = append(p.narrow, narrow{"revoked", "(SELECT * FROM certificates WHERE serial IN (SELECT serial FROM revoked)) AS c", nil})
	}
	bound := func(condition string, args ...any) {
		p.window, p.windowArgs = append(p.window, condition), append(p.windowArgs, args...)
	}
	if !q.From.IsZero() {
		bound("c.not_before >= ?", q.From.Unix())
	}
	if !q.To.IsZero() {
		bound("c.not_before < ?", q.To.Unix())
	}
	if q.Cursor != "" {
		var at, id int64
		raw, err := base64.RawURLEncoding.DecodeString(q.Cursor)
		if _, scanned := fmt.Sscanf(string(raw), "%d %d", &at, &id); err != nil || scanned != nil {
			return p, fault.New(fault.RequestMalformed, "the cursor is none that a search gave")
		}
		bound("(c.not_before, c.id) < (?, ?)", at, id)
	}
	return p, nil
}

func cursor(at, id int64) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %d", at, id))
}

func where(conditions ...[]string) string {
	if all := slices.Concat(conditions...); len(all) > 0 {
		return " WHERE " + strings.Join(all, " AND ")
	}
	return ""
}

const newestFirst = " ORDER BY c.not_before DESC, c.id DESC LIMIT ?"

// from is where the rows come from, so that few are read: all certificates, where a
// condition finds few by itself; those of the few subjects that fit; or else a bounded
// number of the newest.
func (p plan) from(ctx context.Context, db *store.DB, limit int) (from string, args []any, bounded bool, err error) {
	if p.exact {
		return "certificates c", nil, false, nil
	}
	few := func(what, from string, args []any, limit int) (ids []int64, few bool, err error) {
		rows, err := db.Query(ctx, "SELECT "+what+" FROM "+from+" LIMIT ?", append(slices.Clone(args), limit+1)...)
		ids, err = collect(rows, err, func(id *int64) ([]any, func()) { return []any{id}, func() {} })
		return ids, len(ids) <= limit, err
	}
	for _, n := range p.narrow {
		if _, few, err := few("1", n.count, n.args, fewRows); few || err != nil {
			return n.from, n.args, false, err
		}
	}
	if len(p.ofSubject) > 0 {
		ids, few, err := few("s.id", "subjects s"+where(p.ofSubject), p.args, fewSubjects)
		if few || err != nil {
			from, err = p.newest(ctx, db, ids, limit)
			return from, nil, false, err
		}
	}
	return "(SELECT * FROM certificates c" + where(p.window) + newestFirst + ") AS c", append(slices.Clone(p.windowArgs), scan), true, nil
}

// newest are the newest certificates of some subjects, each of which has an index in
// that order.
func (p plan) newest(ctx context.Context, db *store.DB, subjects []int64, limit int) (from string, err error) {
	type place struct{ at, id int64 }
	var all []place
	for _, subject := range subjects {
		rows, err := db.Query(ctx, "SELECT c.not_before, c.id FROM certificates c"+where([]string{"c.subject = ?"}, p.window)+newestFirst, slices.Concat([]any{subject}, p.windowArgs, []any{limit})...)
		some, err := collect(rows, err, func(p *place) ([]any, func()) { return []any{&p.at, &p.id}, func() {} })
		if err != nil {
			return "", err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b place) int { return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(b.id, a.id)) })
	ids := "-1" // nobody's
	for _, one := range all[:min(limit, len(all))] {
		ids += "," + strconv.FormatInt(one.id, 10)
	}
	return "(SELECT * FROM certificates WHERE id IN (" + ids + ")) AS c", nil
}

// places are where the columns of a row go.
func (c *Certificate) places() ([]any, func()) {
	var logged, before, after int64
	var revoked sql.NullInt64
	names := slices.Concat(ofCertificate, ofSubject)
	values := make([]sql.NullString, len(names))
	places := []any{&c.id, &c.Index, &logged, &before, &after, &revoked, &c.RevokedReason}
	for i := range values {
		places = append(places, &values[i])
	}
	return places, func() {
		c.Fields = map[string]string{}
		for i, v := range values {
			if v.String != "" {
				c.Fields[names[i]] = v.String
			}
		}
		c.Logged, c.NotBefore, c.NotAfter = time.Unix(logged, 0).UTC(), time.Unix(before, 0).UTC(), time.Unix(after, 0).UTC()
		if revoked.Valid {
			c.RevokedAt = time.Unix(revoked.Int64, 0).UTC()
		}
	}
}
