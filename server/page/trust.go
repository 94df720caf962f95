package page

import (
	"encoding/hex"
	"net/http"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// window is something that clients trust for a time, as a bar from 0 to 100.
type window struct {
	Name, URL, Fingerprint string
	Start, End             time.Time // a zero End is open
	From, Wide             float64
}

// State is where the window is in its life.
func (w window) State(now time.Time) string {
	if w.Start.After(now) {
		return "next"
	}
	return map[bool]string{true: "past", false: "now"}[!w.End.IsZero() && now.After(w.End)]
}

// trust is whom clients are told to trust, when, and how.
func (p *Page) trust(*http.Request) (any, error) {
	h, root, err := p.o.CA.Trust()
	if err != nil {
		return nil, err
	}
	rekors := make([]ctlog.Description, len(h.TransparencyLogs))
	for i, l := range h.TransparencyLogs {
		rekors[i] = l.Description
	}
	groups := [][]window{authorities(h.Authorities), logs(h.CTLogs), authorities(h.TimestampAuthorities), logs(rekors)}
	now := p.o.Now()
	first, last := now, now.AddDate(0, 0, 1)
	for _, g := range groups {
		for _, w := range g {
			if !w.Start.IsZero() && w.Start.Before(first) {
				first = w.Start
			}
			if w.End.After(last) {
				last = w.End
			}
		}
	}
	at := func(t time.Time) float64 {
		return max(0, float64(t.Sub(first))/float64(last.Sub(first))*100)
	}
	for _, g := range groups {
		for i := range g {
			w, end := &g[i], 100.0
			if w.From = at(w.Start); !w.End.IsZero() {
				end = at(w.End)
			}
			w.Wide = max(0.6, end-w.From)
		}
	}
	v := values{"Authorities": groups[0], "Logs": groups[1], "Timestamps": groups[2], "Rekors": groups[3], "Now": now, "At": at(now), "TUF": quote(p.o.PublicURL + "/tuf"), "First": quote(p.o.PublicURL + "/tuf/1.root.json")}
	if root != nil {
		v["Hash"] = chain.Fingerprint(root)
	}
	return v, nil
}

func authorities(all []trustroot.Authority) (windows []window) {
	for _, a := range all {
		windows = append(windows, window{Name: chain.Subject(a.Chain[0]), URL: a.URL, Fingerprint: chain.Fingerprint(a.Chain[0].Raw), Start: a.Start, End: a.End})
	}
	return windows
}

func logs(all []ctlog.Description) (windows []window) {
	for _, l := range all {
		windows = append(windows, window{Name: l.URL, Fingerprint: hex.EncodeToString(l.ID[:]), Start: l.Start, End: l.End})
	}
	return windows
}
