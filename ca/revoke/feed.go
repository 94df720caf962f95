package revoke

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
)

// FeedPath is where the feeds are served: feed.json, feed.atom, checkpoint.
const FeedPath = "/revocations/"

// The bounds of the feeds.
const (
	pageStatements = 1000
	atomEntries    = 50
	maxWaiters     = 64               // readers who wait at once; others get their answer without waiting
	maxWait        = 60 * time.Second // of one of them
)

// Feed tells of statements: in their order, from any on, and at once to who waits.
type Feed struct {
	log     *Log
	waiters chan struct{}
	done    <-chan struct{} // closed when the service ends
	url     string          // of the service, for people
}

// ServeHTTP serves what is below FeedPath.
func (f *Feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	switch r.URL.Path {
	case FeedPath + "feed.json":
		f.json(w, r)
	case FeedPath + "feed.atom":
		f.atom(w)
	case FeedPath + "checkpoint":
		head, err := f.log.Checkpoint(r.Context())
		if err != nil {
			http.Error(w, "the checkpoint can't be signed now; try again", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(head.Raw)
	default:
		http.NotFound(w, r)
	}
}

// json answers with the statements from an index on, one page of them. Where there are
// none yet it waits for as many seconds as the reader says.
func (f *Feed) json(w http.ResponseWriter, r *http.Request) {
	from, err := number(r, "from")
	seconds, err2 := number(r, "wait")
	if err != nil || err2 != nil {
		http.Error(w, "from is the index of the first statement, and wait how many seconds to wait for it, as in ?from=12&wait=30", http.StatusBadRequest)
		return
	}
	if from >= f.log.Size() && seconds > 0 {
		f.wait(w, r, from, min(time.Duration(min(seconds, 3600))*time.Second, maxWait))
	}
	size := f.log.Size()
	next := max(from, min(size, from+pageStatements))
	w.Header().Set("Content-Type", "application/json")
	read.LimitTime(w, maxStatement*pageStatements)
	fmt.Fprintf(w, `{"size":%d,"next":%d,"statements":[`, size, next)
	for i := from; i < next; i++ { // each by itself, so that a reader holds one in memory
		line, err := f.log.Line(i)
		if err != nil {
			return // cut short: no JSON
		}
		if i > from {
			line = append([]byte{','}, line...)
		}
		if _, err := w.Write(line); err != nil {
			return
		}
	}
	_, _ = w.Write([]byte("]}\n"))
}

func number(r *http.Request, name string) (uint64, error) {
	return strconv.ParseUint(cmp.Or(r.URL.Query().Get(name), "0"), 10, 62)
}

// wait waits for the statement with an index, where there is room for one more who waits.
func (f *Feed) wait(w http.ResponseWriter, r *http.Request, from uint64, most time.Duration) {
	select {
	case f.waiters <- struct{}{}:
	default:
		return
	}
	defer func() { <-f.waiters }()
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the request is read
	ctx, cancel := context.WithTimeout(r.Context(), most)
	defer cancel()
	for {
		size, grown := f.log.Grown()
		if from < size {
			return
		}
		select {
		case <-grown:
		case <-f.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// atom answers with the last statements, the newest first (RFC 4287).
func (f *Feed) atom(w http.ResponseWriter) {
	size := f.log.Size()
	var entries bytes.Buffer
	updated := time.Unix(0, 0).UTC()
	id := html.EscapeString(f.url + FeedPath + "feed.json")
	for i := size; i > 0 && size-i < atomEntries; i-- {
		line, err := f.log.Line(i - 1)
		var s *Statement
		if err == nil {
			s, err = ParseStatement(line)
		}
		if err != nil {
			http.Error(w, "the statements can't be read now", http.StatusInternalServerError)
			return
		}
		if i == size {
			updated = s.Time
		}
		fmt.Fprintf(&entries, "<entry><id>%s?from=%d</id><title>Revoked: serial %s (%s)</title><updated>%s</updated><content>%s</content></entry>\n",
			id, s.Index, s.Serial, s.Reason, s.Time.Format(time.RFC3339), html.EscapeString(string(line)))
	}
	w.Header().Set("Content-Type", "application/atom+xml")
	fmt.Fprintf(w, "%s<feed xmlns=\"http://www.w3.org/2005/Atom\"><id>%s</id><title>Revoked certificates</title><author><name>%s</name></author><updated>%s</updated>\n%s</feed>\n",
		xml.Header, id, html.EscapeString(f.url), updated.Format(time.RFC3339), entries.Bytes())
}
