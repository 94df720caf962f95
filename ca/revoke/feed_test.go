package revoke

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
)

type page struct {
	Size, Next uint64
	Statements []Statement
}

func (r *rig) page(t testing.TB, query string) (p page) {
	t.Helper()
	w := r.get(FeedPath+"feed.json"+query, nil)
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	return p
}

// TestFeed: the pages have every statement once, in order, and end; the Atom feed has the
// newest, for a reader that isn't ours; the checkpoint is over all.
func TestFeed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const n = 2*pageStatements + 5
	var drafts []Statement
	for i := range n {
		drafts = append(drafts, draft(oneID, int64(i+1)))
	}
	drafts[n-1].Comment = `<&"`
	if _, err := r.Log.Append(drafts); err != nil {
		t.Fatal(err)
	}
	seen := uint64(0)
	for range 4 {
		p := r.page(t, fmt.Sprintf("?from=%d", seen))
		for _, s := range p.Statements {
			if s.Index != seen {
				t.Fatalf("statement %d in the place of %d", s.Index, seen)
			}
			seen++
		}
		if p.Next != seen || p.Size != n {
			t.Errorf("%d, %d after %d", p.Next, p.Size, seen)
		}
	}
	if seen != n {
		t.Errorf("%d statements of %d", seen, n)
	}
	var atom struct {
		XMLName xml.Name `xml:"http://www.w3.org/2005/Atom feed"`
		Entries []struct {
			Title   string `xml:"title"`
			Content string `xml:"content"`
		} `xml:"entry"`
	}
	w := r.get(FeedPath+"feed.atom", nil)
	if err := xml.Unmarshal(w.Body.Bytes(), &atom); err != nil || len(atom.Entries) != atomEntries || !strings.Contains(atom.Entries[0].Content, `"comment":"<&\""`) {
		t.Errorf("%v, %d entries:\n%.500s", err, len(atom.Entries), w.Body)
	}
	v, err := checkpoint.NewVerifier("ca.example.com/revocations", r.o.Signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	if head, err := checkpoint.Open(r.get(FeedPath+"checkpoint", nil).Body.Bytes(), v); err != nil || head.Size != n {
		t.Errorf("%+v, %v", head, err)
	}
	for _, bad := range []string{"?from=-1", "?from=x", "?wait=x", "?from=99999999999999999999"} {
		if w := r.get(FeedPath+"feed.json"+bad, nil); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	if w := r.get(FeedPath+"other", nil); w.Code != http.StatusNotFound {
		t.Errorf("%d", w.Code)
	}
	if p := r.page(t, fmt.Sprintf("?from=%d", n+100)); p.Next != n+100 || len(p.Statements) != 0 {
		t.Errorf("%+v", p)
	}
}

// TestLongPoll: who waits hears at once of the next statement, else when the time is
// over; those beyond the bound don't wait; the end of the service ends all.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	opened := newRig(t, nil) // locks and files outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		log := opened.Log
		r := &rig{Revoker: &Revoker{Log: log, Lists: opened.Lists, done: make(chan struct{})}}
		log.grown = make(chan struct{}) // a channel of the bubble
		r.feed = &Feed{log: log, waiters: make(chan struct{}, maxWaiters), done: r.done}
		begun := time.Now()
		ask := func(query string) <-chan page {
			answer := make(chan page, 1)
			go func() { answer <- r.page(t, query) }()
			synctest.Wait()
			return answer
		}
		one := ask("?wait=30")
		time.Sleep(7 * time.Second) //nolint:forbidigo // the bubble's clock
		if _, err := log.Append([]Statement{draft(oneID, 1)}); err != nil {
			t.Fatal(err)
		}
		if p := <-one; len(p.Statements) != 1 || time.Since(begun) != 7*time.Second {
			t.Errorf("%+v after %v", p, time.Since(begun))
		}
		if p := <-ask("?from=1&wait=86400"); p.Size != 1 || time.Since(begun) != 7*time.Second+maxWait {
			t.Errorf("%+v after %v", p, time.Since(begun))
		}
		var all []<-chan page
		for range maxWaiters {
			all = append(all, ask("?from=1&wait=60"))
		}
		before := time.Now()
		if p := <-ask("?from=1&wait=60"); p.Size != 1 || !time.Now().Equal(before) {
			t.Errorf("one too many waited")
		}
		close(r.done)
		for _, a := range all {
			<-a
		}
		if !time.Now().Equal(before) {
			t.Error("they waited on after the service's end")
		}
	})
}
