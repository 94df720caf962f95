package trustroot

import (
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// entry is something that clients verify by, and when.
type entry struct {
	id         string // by what they find it
	words      string
	start, end time.Time
}

// Lost is what h trusts and next doesn't any more, each in words: it may have been
// signed under until now, and whoever follows next can't verify that. What hasn't
// begun isn't missed, and an end may be set as long as it is ahead.
func (h History) Lost(next History, now time.Time) []string {
	var lost []string
	still := next.entries()
	for _, was := range h.entries() {
		until := now
		if !was.end.IsZero() && was.end.Before(now) {
			until = was.end
		}
		if was.start.After(until) {
			continue
		}
		is := slices.DeleteFunc(slices.Clone(still), func(e entry) bool { return e.id != was.id })
		if len(is) == 0 {
			lost = append(lost, was.words+" isn't listed any more: nothing signed under it can be verified")
		} else if !slices.ContainsFunc(is, func(e entry) bool {
			return !e.start.After(was.start) && (e.end.IsZero() || !e.end.Before(until))
		}) {
			lost = append(lost, fmt.Sprintf("%s is listed %s and was %s: nothing signed in between can be verified", was.words, is[0].window(), was.window()))
		}
	}
	return lost
}

func (e entry) window() string {
	text := "from " + e.start.UTC().Format(time.RFC3339)
	if !e.end.IsZero() {
		text += " to " + e.end.UTC().Format(time.RFC3339)
	}
	return text
}

// entries are all of h, in the order of the documents.
func (h History) entries() (all []entry) {
	h = h.ordered()
	authorities := func(kind string, list []Authority) {
		for _, a := range list {
			c := a.Chain[0]
			all = append(all, entry{kind + string(c.Raw), fmt.Sprintf("the %s %s (serial number %x)", kind, c.Subject, c.SerialNumber), a.Start, a.End})
		}
	}
	log := func(kind string, l ctlog.Description) {
		all = append(all, entry{kind + string(l.ID[:]), fmt.Sprintf("the %s %s (log id %x)", kind, l.URL, l.ID), l.Start, l.End})
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
