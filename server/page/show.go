package page

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// row is a certificate as lists show it: its fields, as search has them, cleaned.
type row struct {
	index.Certificate
	F          map[string]string
	Link, Name string
	Workflow   string // without the repository
}

func (p *Page) row(c index.Certificate) row {
	clean := p.cleaner(c.Fields["san"], c.Fields["san_type"])
	r := row{Certificate: c, F: c.Named()}
	if serial := r.F["serial"]; serial != "" {
		r.Link = certificatesPath + serial
	}
	for name, value := range r.F {
		r.F[name] = clean(value)
	}
	r.Name = r.F["san"]
	if repository := r.F["source_repository_uri"]; repository != "" {
		r.Name = strings.TrimPrefix(repository, "https://")
		_, r.Workflow, _ = strings.Cut(r.F["workflow"], repository+"/")
	}
	return r
}

// list adds a part of what is found to v: Rows, and the address of the Next part.
func (p *Page) list(r *http.Request, q index.Query, v values) (values, error) {
	if p.o.Index == nil {
		return nil, fault.New(fault.RouteUnknown, "This CA keeps no index of what it issued. Its operators set `store` in the configuration to have one.")
	}
	asked := r.URL.Query()
	q.Limit, q.Cursor = onPage, asked.Get("cursor")
	found, err := p.o.Index.Search(r.Context(), q)
	rows := make([]row, len(found.Certificates))
	for i, c := range found.Certificates {
		rows[i] = p.row(c)
	}
	v["Rows"] = rows
	if found.Next != "" {
		asked.Set("cursor", found.Next)
		v["Next"] = r.URL.Path + "?" + asked.Encode()
	}
	return v, err
}

// feed is what was issued last.
func (p *Page) feed(r *http.Request) (any, error) {
	h := p.o.CA.Health(r.Context())
	v := values{"Health": h, "PublicURL": p.o.PublicURL}
	if len(h.Expiries) > 0 {
		v["Left"] = humanize.RelTime(p.o.Now(), h.Expiries[0].At, "left", "over")
	}
	if p.o.Index != nil && r.URL.Query().Get("cursor") == "" {
		v["Chart"] = p.chart.draw(r.Context(), p)
	}
	return p.list(r, index.Query{}, v)
}

// condition is a parameter of a search, and the search without it.
type condition struct{ Name, Value, Shown, Without string }

// search finds by any fields: `?san=…`, or `?san^=` and a beginning. q is one condition
// as `mayfly search` takes it; from, to and revoked are its flags.
func (p *Page) search(r *http.Request) (any, error) {
	var q index.Query
	var conditions []condition
	asked := r.URL.Query()
	all := maps.Clone(asked)
	for _, name := range []string{"q", "from", "to", "revoked", "cursor"} {
		delete(all, name)
	}
	if short := strings.TrimSpace(asked.Get("q")); short != "" {
		name, value, _ := strings.Cut(index.Condition(short), "=")
		all[name] = append(slices.Clone(all[name]), value)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, value := range all[name] {
			without := maps.Clone(all)
			without[name] = slices.DeleteFunc(slices.Clone(all[name]), func(v string) bool { return v == value })
			conditions = append(conditions, condition{name, value, p.clean(name + "=" + value), r.URL.Path + "?" + without.Encode()})
			f, err := index.ParseFilter(name + "=" + value)
			if err == nil && f.Prefix && p.masks() && !strings.Contains(value, "://") && slices.Contains([]string{"san", "identity", "workflow", "token_subject"}, f.Field) {
				err = fault.New(fault.RequestMalformed, "E-mail addresses are shown by domain only here, so %s isn't searched by its beginning. Give all of it, or a domain: @example.com.", f.Field)
			}
			if err != nil {
				return nil, err
			}
			q.Filters = append(q.Filters, f)
		}
	}
	var err error
	if q.From, err = moment(asked.Get("from")); err == nil {
		q.To, err = moment(asked.Get("to"))
	}
	if err != nil {
		return nil, err
	}
	q.Revoked = asked.Get("revoked") == "true" || r.URL.Path == "/revocations"
	v := values{"Path": r.URL.Path, "From": asked.Get("from"), "To": asked.Get("to"), "Revoked": q.Revoked, "Conditions": conditions, "Fields": index.Fields}
	if len(q.Filters) == 0 && q.From.IsZero() && q.To.IsZero() && !q.Revoked {
		return v, nil
	}
	v["Searched"] = true
	return p.list(r, q, v)
}

// moment reads a day, or a time.
func moment(text string) (time.Time, error) {
	for _, form := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(form, text); err == nil || text == "" {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.RequestMalformed, "That isn't a time. Write a day, 2026-11-29, or a time, 2026-11-29T08:00:00Z.")
}

// reason are the refusals of one kind, of which Last is the newest.
type reason struct {
	Last   audit.Event
	Number int
}

// refusals are those on record, by reason and one by one.
func (p *Page) refusals(r *http.Request) (any, error) {
	events, err := p.o.CA.Refusals(r.Context())
	if err != nil {
		return nil, fault.New(fault.AuditUnavailable, "The record of refusals can't be read now. Try again.").Because(err)
	}
	var reasons []*reason
	for i := range events {
		e := &events[i]
		clean := p.cleaner(e.SAN, e.SANType)
		if e.RemoteAddr = clean(e.RemoteAddr); p.o.Config.Access == Open { // it is personal, too
			e.RemoteAddr = ""
		}
		e.SAN, e.Subject, e.Issuer, e.Rule, e.RequestID, e.Message = clean(e.SAN), clean(e.Subject), clean(e.Issuer), clean(e.Rule), clean(e.RequestID), clean(e.Message)
		n := slices.IndexFunc(reasons, func(r *reason) bool { return r.Last.Reason == e.Reason })
		if n < 0 {
			n, reasons = len(reasons), append(reasons, &reason{Last: *e})
		}
		reasons[n].Number++
	}
	slices.SortStableFunc(reasons, func(a, b *reason) int { return b.Number - a.Number })
	return values{"Reasons": reasons, "Number": len(events), "Last": events[:min(onPage, len(events))]}, nil
}

// countdown is how long something lasts; Share is of a year, in percent.
type countdown struct {
	Expiry
	Left  string
	Share float64
}

// health is how the CA is.
func (p *Page) health(r *http.Request) (any, error) {
	h, now := p.o.CA.Health(r.Context()), p.o.Now()
	for _, d := range h.Dependencies {
		for n := range d.Detail {
			d.Detail[n] = p.clean(d.Detail[n])
		}
	}
	var all []countdown
	for _, e := range h.Expiries {
		all = append(all, countdown{e, humanize.RelTime(now, e.At, "left", "over"), min(100, max(0.2, e.At.Sub(now).Hours()/24/3.65))})
	}
	return values{"Health": h, "Countdowns": all}, nil
}
