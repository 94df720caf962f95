package page

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	"github.com/mayfly-ca/mayfly/server"
)

// emails are addresses within a text: their domain is the group. What follows the @ of a
// workflow (`release.yml@refs/tags/v1`) is none.
var emails = regexp.MustCompile(`[^\s@/<>"']+@((?:[\p{L}\p{N}-]+\.)+\p{L}{2,})`)

// clean is a text from outside as it is shown: without what deceives its reader, and
// without addresses where they aren't to be seen. The templates escape it for HTML.
func (p *Page) clean(s string) string {
	if p.o.Config.ShowEmails == emailsDomain {
		s = emails.ReplaceAllString(s, "…@$1")
	}
	return terminal.Line(s)
}

// cleaner cleans what is said of one certificate, whose name is masked however it is written.
func (p *Page) cleaner(fields map[string]string) func(string) string {
	san := fields["san"]
	if at := strings.LastIndexByte(san, '@'); p.o.Config.ShowEmails == emailsDomain && fields["san_type"] == "email" && at >= 0 {
		return func(s string) string { return p.clean(strings.ReplaceAll(s, san, "…"+san[at:])) }
	}
	return p.clean
}

// row is a certificate in a list.
type row struct {
	Link, Name, Kind, Issuer string
	Detail                   []string // what it was for
	Time, Revoked            time.Time
	Reason                   string
}

// kinds are those of a name, for people.
var kinds = map[string]string{"email": "person", "uri": "workload", "username": "user", index.Unreadable: "unreadable entry"}

func (p *Page) row(c index.Certificate) row {
	f, clean := c.Fields, p.cleaner(c.Fields)
	r := row{Name: clean(f["san"]), Kind: kinds[f["san_type"]], Issuer: clean(strings.TrimPrefix(f["issuer"], "https://")), Time: c.NotBefore, Revoked: c.RevokedAt, Reason: c.RevokedReason}
	if f["serial"] != "" {
		r.Link = certificatesPath + f["serial"]
	}
	if f["source_repository_uri"] != "" {
		r.Name = clean(strings.TrimPrefix(f["source_repository_uri"], "https://"))
		_, workflow, _ := strings.Cut(f["workflow"], f["source_repository_uri"]+"/")
		for _, detail := range []string{workflow, f["source_repository_ref"], f["build_trigger"]} {
			if detail != "" {
				r.Detail = append(r.Detail, clean(detail))
			}
		}
	}
	if r.Name == "" {
		r.Name = "(no name)"
	}
	return r
}

// day are the certificates of one day.
type day struct {
	Date time.Time
	Rows []row
}

// list is a part of what was found.
type list struct {
	Days []day
	Next string // address of the part after; empty: there is none
}

func (p *Page) list(r *http.Request, q index.Query) (l list, err error) {
	if p.o.Index == nil {
		return l, fault.New(fault.RouteUnknown, "This CA keeps no index of what it issued. Its operators set `store` in the configuration to have one.")
	}
	q.Limit, q.Cursor = onPage, r.URL.Query().Get("cursor")
	found, err := p.o.Index.Search(r.Context(), q)
	if err != nil {
		return l, err
	}
	for _, c := range found.Certificates {
		one := p.row(c)
		if date := one.Time.UTC().Truncate(24 * time.Hour); len(l.Days) == 0 || !l.Days[len(l.Days)-1].Date.Equal(date) {
			l.Days = append(l.Days, day{Date: date})
		}
		last := &l.Days[len(l.Days)-1]
		last.Rows = append(last.Rows, one)
	}
	if found.Next != "" {
		next := r.URL.Query()
		next.Set("cursor", found.Next)
		l.Next = r.URL.Path + "?" + next.Encode()
	}
	return l, nil
}

// feed is what was issued last.
func (p *Page) feed(r *http.Request, _ visitor) (any, error) {
	l, err := p.list(r, index.Query{})
	if err != nil {
		return nil, err
	}
	h := p.o.CA.Health(r.Context())
	content := struct {
		list
		Chart    *drawing
		Entries  uint64
		Failing  []string
		Expiry   *Expiry
		Left     time.Duration
		First    bool // of the parts
		Now      time.Time
		PublicAt string
	}{list: l, First: r.URL.Query().Get("cursor") == "", Now: p.o.Now(), PublicAt: p.o.PublicURL}
	for _, log := range h.Logs {
		content.Entries += log.Followed
	}
	for _, d := range h.Dependencies {
		if !d.Works {
			content.Failing = append(content.Failing, d.Name)
		}
	}
	if len(h.Expiries) > 0 {
		content.Expiry, content.Left = &h.Expiries[0], h.Expiries[0].At.Sub(p.o.Now())
	}
	if content.First {
		content.Chart = p.chart.draw(r.Context(), p)
	}
	return content, nil
}

// condition is one that holds for all that was found, and the search without it.
type condition struct{ Text, Without string }

// parameter is one of the search's address.
type parameter struct{ Name, Value string }

// form is the search as it was asked.
type form struct {
	list
	Path       string
	Asked      string // by the field that was filled in
	From, To   string
	Revoked    bool
	Conditions []condition
	Hidden     []parameter // what the form keeps
	Fields     []string
	Searched   bool
}

// The parameters of a search that are no field.
const (
	paramAsked, paramFrom, paramTo, paramRevoked, paramCursor = "q", "from", "to", "revoked", "cursor"
)

// search finds by any fields: `?san=…`, or `?san^=` and a beginning. q is one condition
// as `mayfly search` takes it.
func (p *Page) search(r *http.Request, _ visitor) (any, error) {
	f := form{Path: r.URL.Path, Fields: index.Fields}
	var query index.Query
	asked := r.URL.Query()
	delete(asked, paramCursor)
	for name, values := range asked {
		if slices.Contains([]string{paramAsked, paramFrom, paramTo, paramRevoked}, name) {
			continue
		}
		for _, value := range values {
			condition := condition{Text: p.clean(name + "=" + value)}
			without := url.Values{}
			for n, all := range asked {
				without[n] = slices.DeleteFunc(slices.Clone(all), func(v string) bool { return n == name && v == value })
			}
			condition.Without = f.Path + "?" + without.Encode()
			f.Conditions = append(f.Conditions, condition)
			f.Hidden = append(f.Hidden, parameter{name, value})
			if err := p.filter(&query, name+"="+value); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(f.Conditions, func(a, b condition) int { return strings.Compare(a.Text, b.Text) })
	f.Asked, f.From, f.To, f.Revoked = strings.TrimSpace(asked.Get(paramAsked)), asked.Get(paramFrom), asked.Get(paramTo), asked.Get(paramRevoked) == "true"
	if f.Asked != "" {
		if err := p.filter(&query, index.Condition(f.Asked)); err != nil {
			return nil, err
		}
	}
	var err error
	if query.From, err = moment(f.From); err == nil {
		query.To, err = moment(f.To)
	}
	if err != nil {
		return nil, err
	}
	query.Revoked = f.Revoked
	if f.Searched = len(query.Filters) > 0 || f.From != "" || f.To != "" || f.Revoked; f.Searched {
		f.list, err = p.list(r, query)
	}
	return f, err
}

// filter adds a condition. Where addresses aren't to be seen, none can be found out
// letter by letter.
func (p *Page) filter(q *index.Query, text string) error {
	f, err := index.ParseFilter(text)
	if err == nil && f.Prefix && p.o.Config.ShowEmails == emailsDomain && slices.Contains([]string{"san", "identity", "workflow", "token_subject"}, f.Field) && !strings.Contains(f.Value, "://") {
		return fault.New(fault.RequestMalformed, "E-mail addresses are shown by domain only here, so %s can't be searched by its beginning. Give the whole value, or a domain: @example.com.", f.Field)
	}
	q.Filters = append(q.Filters, f)
	return err
}

// moment reads a day, or a time.
func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.RequestMalformed, "That isn't a time. Write a day, 2026-11-29, or a time, 2026-11-29T08:00:00Z.")
}

// revocations is a search for what is revoked.
func (p *Page) revocations(r *http.Request, _ visitor) (any, error) {
	l, err := p.list(r, index.Query{Revoked: true})
	return form{list: l, Path: r.URL.Path, Searched: true, Revoked: true}, err
}

// reason are the refusals of one kind.
type reason struct {
	Reason, Expected string
	Number           int
	Last             time.Time
}

// refusal is one that is on record.
type refusal struct {
	Who, Issuer, Reason, Message, Rule, Request string
	Time                                        time.Time
}

// refusals are those on record, by reason and one by one.
func (p *Page) refusals(r *http.Request, _ visitor) (any, error) {
	events, err := p.o.CA.Refusals(r.Context())
	if err != nil {
		return nil, fault.New(fault.AuditUnavailable, "The record of refusals can't be read now. Try again.").Because(err)
	}
	content := struct {
		Reasons []*reason
		Last    []refusal
		Number  int
		Since   time.Time
	}{Number: len(events)}
	by := map[string]*reason{}
	for _, e := range events {
		clean := p.cleaner(map[string]string{"san": e.SAN, "san_type": e.SANType})
		of := by[string(e.Reason)]
		if of == nil { // the newest
			of = &reason{Reason: string(e.Reason), Expected: clean(sentence(e.Message)), Last: e.Time}
			by[of.Reason], content.Reasons = of, append(content.Reasons, of)
		}
		of.Number++
		content.Since = e.Time
		if len(content.Last) < onPage {
			who := e.SAN
			if who == "" {
				who = e.Subject
			}
			if who == "" && p.o.Config.Access != Open { // an address is personal, too
				who = e.RemoteAddr
			}
			content.Last = append(content.Last, refusal{clean(who), clean(e.Issuer), string(e.Reason), clean(sentence(e.Message)), clean(e.Rule), clean(e.RequestID), e.Time})
		}
	}
	slices.SortStableFunc(content.Reasons, func(a, b *reason) int { return b.Number - a.Number })
	return content, nil
}

// health is how the CA is.
func (p *Page) health(r *http.Request, _ visitor) (any, error) {
	h := p.o.CA.Health(r.Context())
	for i := range h.Dependencies {
		for n, line := range h.Dependencies[i].Detail {
			h.Dependencies[i].Detail[n] = p.clean(line)
		}
	}
	type countdown struct {
		Expiry
		Left  time.Duration
		Share float64 // of a year, in percent
		State string
	}
	content := struct {
		Health
		Countdowns []countdown
		Ready      bool
	}{Health: h, Ready: !slices.ContainsFunc(h.Dependencies, func(d server.Standing) bool { return !d.Works && !d.Informational })}
	for _, e := range h.Expiries {
		c := countdown{Expiry: e, Left: e.At.Sub(p.o.Now()), State: "good"}
		c.Share = min(100, max(1, c.Left.Hours()/(365*24)*100))
		if c.Left < 30*24*time.Hour {
			c.State = "soon"
		}
		if c.Left < 24*time.Hour {
			c.State = "bad"
		}
		content.Countdowns = append(content.Countdowns, c)
	}
	return content, nil
}
