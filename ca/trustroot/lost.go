package trustroot

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// Gap is a time, both ends included, in which nothing counts that was signed.
type Gap struct {
	// From is its first moment.
	From time.Time `yaml:"from"`
	// To is its last moment.
	To time.Time `yaml:"to"`
}

// ParseGap reads FROM/TO, two times of RFC 3339.
func ParseGap(text string) (g Gap, err error) {
	from, to, _ := strings.Cut(text, "/")
	if g.From, err = time.Parse(time.RFC3339, from); err == nil {
		g.To, err = time.Parse(time.RFC3339, to)
	}
	if err != nil || g.check() != nil {
		return g, fmt.Errorf("%q isn't two times, the earlier first, such as 2026-11-29T10:00:00Z/2026-11-29T11:30:00Z", text)
	}
	return g, nil
}

func (g Gap) check() error {
	if g.From.IsZero() || g.To.Before(g.From) {
		return errors.New("needs from and to, the earlier first")
	}
	return nil
}

func (g Gap) String() string { return chain.Stamp(g.From) + "/" + chain.Stamp(g.To) }

// Excise is h with each certificate authority that counts in a gap listed twice, once
// before it and once after: clients find no authority for a time in between. Times are
// compared by the second.
func (h History) Excise(gaps []Gap) History {
	for _, g := range gaps {
		var parts []Authority
		for _, a := range h.Authorities {
			if a.Start.After(g.To) || !a.End.IsZero() && a.End.Before(g.From) {
				parts = append(parts, a)
				continue
			}
			before, after := a, a
			before.End, after.Start = g.From.Add(-time.Second), g.To.Add(time.Second)
			if !before.End.Before(a.Start) {
				parts = append(parts, before)
			}
			if a.End.IsZero() || !after.Start.After(a.End) {
				parts = append(parts, after)
			}
		}
		h.Authorities = parts
	}
	return h
}

// Regained are the gaps of h in which next trusts an authority again, in words.
func (h History) Regained(next History) (words []string) {
	for _, a := range h.Authorities {
		hole := a.End.Add(time.Second)
		holds := func(o Authority) bool { return o.Chain[0].Equal(a.Chain[0]) && o.Holds(hole) }
		goesOn := func(o Authority) bool { return o.Chain[0].Equal(a.Chain[0]) && o.Start.After(hole) }
		if !a.End.IsZero() && slices.ContainsFunc(h.Authorities, goesOn) && !slices.ContainsFunc(h.Authorities, holds) && slices.ContainsFunc(next.Authorities, holds) {
			words = append(words, fmt.Sprintf("what %s signed from %s on was excised and would count again: keep it under trust.excised", a.Chain[0].Subject, chain.Stamp(hole)))
		}
	}
	return words
}

// Entry is something that clients verify by, and when.
type Entry struct {
	ID         string // by what they find it
	Name       string // in words
	Mark       string // what tells it from others of the name, in words
	Verifies   []byte // the certificate or key, in DER
	Start, End time.Time
	More       string // what else clients are told, in words
}

// Lost is what h trusts and next doesn't any more, each in words: it may have been
// signed under until now, and whoever follows next can't verify that. What hasn't
// begun isn't missed, and an end may be set as long as it is ahead.
func (h History) Lost(next History, now time.Time) []string {
	var lost []string
	still := next.Entries()
	for _, was := range h.Entries() {
		until := now
		if !was.End.IsZero() && was.End.Before(now) {
			until = was.End
		}
		if was.Start.After(until) {
			continue
		}
		words := fmt.Sprintf("the %s (%s)", was.Name, was.Mark)
		is := slices.DeleteFunc(slices.Clone(still), func(e Entry) bool { return e.ID != was.ID })
		if len(is) == 0 {
			lost = append(lost, words+" isn't listed any more: nothing signed under it can be verified")
		} else if !slices.ContainsFunc(is, func(e Entry) bool {
			return !e.Start.After(was.Start) && (e.End.IsZero() || !e.End.Before(until))
		}) {
			lost = append(lost, fmt.Sprintf("%s is listed %s and was %s: nothing signed in between can be verified", words, is[0].window(), was.window()))
		}
	}
	return lost
}

func (e Entry) window() string {
	text := "from " + e.Start.UTC().Format(time.RFC3339)
	if !e.End.IsZero() {
		text += " to " + e.End.UTC().Format(time.RFC3339)
	}
	return text
}

// Entries are all of h, in the order of the documents.
func (h History) Entries() (all []Entry) {
	h = h.ordered()
	authorities := func(kind string, list []Authority) {
		for _, a := range list {
			c := a.Chain[0]
			e := Entry{ID: kind + string(c.Raw), Name: kind + " " + c.Subject.String(), Mark: fmt.Sprintf("serial number %x", c.SerialNumber), Verifies: c.Raw, Start: a.Start, End: a.End}
			for _, above := range a.Chain[1:] {
				e.More += fmt.Sprintf(", below %x", sha256.Sum256(above.Raw))
			}
			e.More += ", at " + cmp.Or(a.URL, "no URL")
			all = append(all, e)
		}
	}
	log := func(kind string, l ctlog.Description) {
		mark := fmt.Sprintf("log id %x", l.ID)
		all = append(all, Entry{kind + string(l.ID[:]), kind + " " + l.URL, mark, l.SPKI, l.Start, l.End, ", " + strings.TrimPrefix(mark, "log ")})
	}
	authorities("certificate authority", h.Authorities)
	authorities("timestamp authority", h.TimestampAuthorities)
	for _, l := range h.CTLogs {
		log("CT log", l)
	}
	for _, l := range h.TransparencyLogs {
		log("Rekor log", l.Description)
	}
	return all
}
