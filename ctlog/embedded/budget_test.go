package embedded_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
)

// TestAnswersThatNobodyReadsHoldLittle: however many reads are asked for and not taken,
// from however many addresses, they hold no more than the budget says, the one who
// takes its answers is served, and all is given back.
func TestAnswersThatNobodyReadsHoldLittle(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 300)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 300)
	handler := l.Handler()
	blocked, refused := make(chan struct{}, 1000), make(chan int, 1000)
	resume := make(chan struct{})
	before := heap()
	var readers sync.WaitGroup
	for i := range 1000 { // five addresses fill an eighth each
		readers.Go(func() {
			r := httptest.NewRequest(http.MethodGet, []string{"/ct/v1/get-entries?start=0&end=255", "/tile/data/000"}[i%2], nil)
			r.RemoteAddr = fmt.Sprintf("198.51.100.%d:1", i%5)
			w := &stuckWriter{header: http.Header{}, blocked: blocked, resume: resume}
			handler.ServeHTTP(w, r)
			if w.code != 0 && w.code != http.StatusOK {
				refused <- w.code
			}
		})
	}
	const held = 5 * 28
	for range held {
		<-blocked
	}
	for range 1000 - held {
		if code := <-refused; code != http.StatusTooManyRequests && code != http.StatusServiceUnavailable {
			t.Errorf("beyond the budget: %d", code)
		}
	}
	if grown := heap() - before; grown > read.MaxBytes*held/224 {
		t.Errorf("%d reads hold %d bytes", held, grown)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ct/v1/get-entries?start=0&end=3", nil))
	if w.Code != http.StatusOK {
		t.Errorf("another address: %d %s", w.Code, w.Body)
	}
	r := httptest.NewRequest(http.MethodGet, "/checkpoint", nil)
	r.RemoteAddr = "198.51.100.1:2"
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("an address that holds its share: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	w = httptest.NewRecorder()
	l.LocalReads().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/checkpoint", nil))
	if w.Code != http.StatusOK {
		t.Errorf("the process itself: %d", w.Code)
	}
	close(resume)
	readers.Wait()
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("with the places of those who left: %d", w.Code)
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// stuckWriter is a reader that takes nothing of a body until it may go on.
type stuckWriter struct {
	header          http.Header
	code            int
	blocked, resume chan struct{}
}

func (w *stuckWriter) Header() http.Header  { return w.header }
func (w *stuckWriter) WriteHeader(code int) { w.code = code }
func (w *stuckWriter) Write(b []byte) (int, error) {
	if w.code == 0 || w.code == http.StatusOK {
		select {
		case <-w.resume:
		default:
			w.blocked <- struct{}{}
			<-w.resume
		}
	}
	return len(b), nil
}

// TestSlowReaderIsCutOff: an answer has a time of its own, which a reader who takes
// nothing can't make longer.
func TestSlowReaderIsCutOff(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 3)
	at, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), at, c).Await(t, 3)
	for path, least := range map[string]time.Duration{
		"/checkpoint": 10 * time.Second, "/tile/data/000.p/3": 10 * time.Second, "/ct/v1/get-entries?start=0&end=2": 10 * time.Second,
	} {
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		begin := time.Now()
		l.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if left := w.deadline.Sub(begin); left < least || left > least+5*time.Second {
			t.Errorf("%s: the reader has %v", path, left)
		}
	}
}

// timed remembers its write deadline.
type timed struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *timed) SetWriteDeadline(t time.Time) error { w.deadline = t; return nil }

// TestGetEntriesAnswers: what an answer holds is as it always was, byte for byte, in
// answers that are smaller than what is asked for.
func TestGetEntriesAnswers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 300)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 300)
	next := 0
	for _, want := range []int{128, 128, 44} {
		h, body := get(t, c, fmt.Sprintf("%s/ct/v1/get-entries?start=%d&end=1000", url, next), 200)
		var answer ct.GetEntriesResponse
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(answer)
		if err != nil || !bytes.Equal(again, body) {
			t.Errorf("from %d: not what encoding/json writes: %v", next, err)
		}
		if len(answer.Entries) != want || h.Get("Content-Type") != "application/json" {
			t.Errorf("from %d: %d entries, want %d, %q", next, len(answer.Entries), want, h.Get("Content-Type"))
		}
		for i, e := range answer.Entries {
			parsed, err := ct.LogEntryFromLeaf(int64(next+i), &e)
			if err != nil || parsed.Precert == nil || len(parsed.Chain) != 2 {
				t.Fatalf("entry %d: %+v, %v", next+i, parsed, err)
			}
		}
		next += len(answer.Entries)
	}
	// A tile that is damaged or gone is our fault, said before an answer begins.
	raw := readFile(t, b.path("tile", "data", "000"))
	if err := os.WriteFile(b.path("tile", "data", "000"), raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, c, url+"/ct/v1/get-entries?start=120&end=255", 500)
	if err := os.Remove(b.path("tile", "data", "000")); err != nil {
		t.Fatal(err)
	}
	get(t, c, url+"/ct/v1/get-entries?start=0&end=0", 500)
}

// TestConditionalReadsAndParts: what a reader has it isn't sent again, it may ask for a
// part, and HEAD says what GET would, without a body.
func TestConditionalReadsAndParts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 300)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 300)
	ask := func(method, path string, headers ...string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", "identity")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, body
	}
	seen := map[string]string{}
	for _, path := range []string{
		"/checkpoint", "/log.v3.json", "/issuer/" + first(t, b.path("issuer")), "/tile/0/000", "/tile/0/001.p/44", "/tile/0/001.p/3",
		"/tile/data/000", "/tile/data/001.p/44", "/tile/data/001.p/3", "/tile/data/000.p/9",
	} {
		whole, body := ask(http.MethodGet, path)
		tag := whole.Header.Get("ETag")
		if whole.StatusCode != 200 || tag == "" || seen[tag] != "" || whole.ContentLength != int64(len(body)) {
			t.Errorf("%s: %d, ETag %q as of %q, %d bytes announced, %d came", path, whole.StatusCode, tag, seen[tag], whole.ContentLength, len(body))
		}
		seen[tag] = path
		if head, none := ask(http.MethodHead, path); head.StatusCode != 200 || head.ContentLength != int64(len(body)) || head.Header.Get("ETag") != tag || len(none) != 0 {
			t.Errorf("HEAD %s: %d, %d bytes announced, ETag %q", path, head.StatusCode, head.ContentLength, head.Header.Get("ETag"))
		}
		if same, none := ask(http.MethodGet, path, "If-None-Match", tag); same.StatusCode != http.StatusNotModified || len(none) != 0 {
			t.Errorf("%s again: %d", path, same.StatusCode)
		}
		if part, some := ask(http.MethodGet, path, "Range", "bytes=2-9"); part.StatusCode != http.StatusPartialContent || !bytes.Equal(some, body[2:10]) {
			t.Errorf("a part of %s: %d", path, part.StatusCode)
		}
		if !strings.HasPrefix(path, "/tile/data/") {
			continue
		}
		packed, _ := ask(http.MethodGet, path, "Accept-Encoding", "gzip")
		if packed.Header.Get("Content-Encoding") == "gzip" && packed.Header.Get("ETag") == tag {
			t.Errorf("%s packed has the ETag of the plain one", path)
		}
		if newest := path != "/tile/data/001.p/3" && path != "/tile/data/000.p/9"; newest != (packed.Header.Get("Content-Encoding") == "gzip") {
			t.Errorf("%s: encoding %q; only what is asked for again is worth packing", path, packed.Header.Get("Content-Encoding"))
		}
	}
	if head, _ := ask(http.MethodHead, "/ct/v1/get-entries?start=0&end=4"); head.StatusCode != 200 || head.ContentLength <= 0 {
		t.Errorf("HEAD get-entries: %d, %d bytes", head.StatusCode, head.ContentLength)
	}
}
