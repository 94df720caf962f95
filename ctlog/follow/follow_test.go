package follow_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// keeper keeps in memory.
type keeper struct {
	mu      sync.Mutex
	at      follow.Position
	entries []follow.Entry
}

func (k *keeper) Position(context.Context, ctlog.Description) (follow.Position, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at, nil
}

func (k *keeper) Keep(_ context.Context, _ ctlog.Description, from uint64, entries []follow.Entry, after follow.Position) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if from != k.at.Size {
		return follow.ErrMoved
	}
	k.at, k.entries = after, append(k.entries, entries...)
	return nil
}

// bench is a real log behind a server that can be made to lie, and a follower.
type bench struct {
	*follow.Follower
	ca       *ctlogtest.CA
	signer   *ctlogtest.Signer
	log      *embedded.Log
	sent     map[string]bool // TBSCertificates
	keeper   *keeper
	lie      atomic.Pointer[http.HandlerFunc] // serves in the log's place; nil: it doesn't
	evidence string
	registry *prometheus.Registry
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{ca: ctlogtest.NewCA(t), signer: ctlogtest.NewSigner(t), sent: map[string]bool{}, keeper: &keeper{}, registry: prometheus.NewRegistry()}
	b.log = b.open(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lie := b.lie.Load(); lie != nil {
			(*lie)(w, r)
			return
		}
		b.log.LocalReads().ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	b.evidence = filepath.Join(t.TempDir(), "evidence")
	var err error
	b.Follower, err = follow.New([]remote.Log{{Description: b.log.Description(), URL: server.URL}},
		follow.Options{Keeper: b.keeper, Evidence: b.evidence, Interval: time.Millisecond, Metrics: b.registry})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open makes a log of the bench's name and key.
func (b *bench) open(t *testing.T) *embedded.Log {
	t.Helper()
	dir := t.TempDir()
	l, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(dir, "log")), MarkFile: setting.Path(filepath.Join(dir, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond,
	}, embedded.Options{Signer: b.signer, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return l
}

// submit logs n certificates, and returns once they are published.
func (b *bench) submit(t *testing.T, l *embedded.Log, n int, until uint64) {
	t.Helper()
	var submitting sync.WaitGroup
	for range n {
		chain := b.ca.Chain(t)
		b.sent[string(chain.TBS)] = true
		submitting.Go(func() {
			if _, err := l.Submit(t.Context(), chain); err != nil {
				t.Error(err)
			}
		})
	}
	submitting.Wait()
	server := httptest.NewServer(l.LocalReads())
	defer server.Close()
	ctlogtest.NewReader(t, l.Description(), server.URL, server.Client()).Await(t, until)
}

func (b *bench) follow(t *testing.T, want int) {
	t.Helper()
	if err := b.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.keeper.entries) != want || b.keeper.at.Size != uint64(want) {
		t.Fatalf("%d entries to %d, want %d", len(b.keeper.entries), b.keeper.at.Size, want)
	}
}

// without serves a log but for paths.
func without(l *embedded.Log, path string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, path) {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		l.LocalReads().ServeHTTP(w, r)
	}
}

// changed serves a log with the bodies of some paths changed.
func changed(l *embedded.Log, path string, change func([]byte) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, path) {
			l.LocalReads().ServeHTTP(w, r)
			return
		}
		honest := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		l.LocalReads().ServeHTTP(honest, r)
		_, _ = w.Write(change(honest.Body.Bytes()))
	}
}

// TestFollow: every entry comes once, in order, as it was logged, through both APIs, and
// a follower goes on where another ended, inside a tile too.
func TestFollow(t *testing.T) {
	t.Parallel()
	for name, lacks := range map[string]string{"static-ct": "/ct/v1/", "RFC 6962": "/checkpoint"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			serve := without(b.log, lacks)
			b.lie.Store(&serve)
			b.follow(t, 0)
			b.submit(t, b.log, 10, 10)
			b.follow(t, 10)
			b.submit(t, b.log, 600, 610)
			b.follow(t, 610)
			b.follow(t, 610)
			for i, e := range b.keeper.entries {
				if e.Index != uint64(i) || !e.Precert || time.Since(e.Timestamp) > time.Minute || !b.sent[string(e.Certificate)] {
					t.Fatalf("entry %d: %d, %v, at %v", i, e.Index, e.Precert, e.Timestamp)
				}
				delete(b.sent, string(e.Certificate))
			}
			b.show(t)
			if s := b.Status(); len(s) != 1 || s[0].Followed != 610 || s[0].Size != 610 || s[0].Err != nil || s[0].Looked.IsZero() {
				t.Errorf("%+v", s)
			}
		})
	}
}

// show has single entries shown, with their proofs, and none that isn't the log's.
func (b *bench) show(t *testing.T) {
	t.Helper()
	id := b.log.Description().ID
	for _, n := range []uint64{0, 255, 256, 609} {
		s, err := b.Show(t.Context(), id, n)
		if err != nil || s.Index != n || !bytes.Equal(s.Certificate, b.keeper.entries[n].Certificate) || s.Size != 610 || s.Submitted == nil {
			t.Fatalf("entry %d: %+v, %v", n, s, err)
		}
		final, err := s.X509()
		submitted, other := x509.ParseCertificate(s.Submitted)
		if err != nil || other != nil || final.SerialNumber.Cmp(submitted.SerialNumber) != 0 {
			t.Errorf("entry %d: %v, %v", n, err, other)
		}
	}
	if _, err := b.Show(t.Context(), id, 610); err == nil {
		t.Error("an entry is shown that the log doesn't have")
	}
	if _, err := b.Show(t.Context(), [32]byte{}, 0); err == nil {
		t.Error("an entry is shown of a log that nobody follows")
	}
	honest := *b.lie.Load()
	defer b.lie.Store(&honest)
	var lie http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		if _, entries, ok := strings.Cut(r.URL.String(), "get-entries?start="); ok && entries != "" { // another one
			r.URL.RawQuery = "start=7&end=7"
		}
		if strings.HasPrefix(r.URL.Path, "/tile/data/") { // the last byte of the first certificate is another
			answer := httptest.NewRecorder()
			honest(answer, r)
			body := answer.Body.Bytes()
			body[200] ^= 1
			_, _ = w.Write(body)
			return
		}
		honest(w, r)
	}
	b.lie.Store(&lie)
	if s, err := b.Show(t.Context(), id, 0); err == nil {
		t.Errorf("another entry is taken for one: %+v", s)
	}
	lie = func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/get-entries") || strings.HasPrefix(r.URL.Path, "/tile/data/") {
			_, _ = w.Write(bytes.Repeat([]byte(" "), 2<<20+1))
		}
		honest(w, r)
	}
	if _, err := b.Show(t.Context(), id, 0); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an entry of endless bytes is read: %v", err)
	}
}

// TestContradictions: a log that goes against what it signed is followed no further; the
// evidence is kept once and counted; a log that is whole again is followed on.
func TestContradictions(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.submit(t, b.log, 20, 20)
	b.follow(t, 20)
	b.submit(t, b.log, 300, 320)
	var smaller, same, larger *embedded.Log
	for log, size := range map[**embedded.Log]uint64{&smaller: 10, &same: 20, &larger: 350} {
		*log = b.open(t)
		b.submit(t, *log, int(size), size)
	}
	flip := func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw }
	for name, tt := range map[string]struct {
		lie  http.HandlerFunc
		kind string
		what string
	}{
		"another tree":         {larger.LocalReads().ServeHTTP, "fork", "doesn't begin with the 20"},
		"of the same size":     {same.LocalReads().ServeHTTP, "fork", "two trees of 20"},
		"smaller":              {smaller.LocalReads().ServeHTTP, "back", "has 10 entries, and had 20"},
		"no entries":           {without(b.log, "/tile/data/"), "withheld", "tile/data/"},
		"no hashes":            {without(b.log, "/tile/0/"), "withheld", "the proof from 20"},
		"another entry":        {changed(b.log, "/tile/data/", flip), "", ""}, // a fork, or malformed, by where the bit is
		"a tile cut short":     {changed(b.log, "/tile/data/", func(raw []byte) []byte { return raw[:len(raw)-1] }), "entry", "cut short"},
		"fewer entries":        {changed(b.log, "/tile/data/", func(raw []byte) []byte { return nil }), "entry", "0 entries, not"},
		"false hashes":         {changed(b.log, "/tile/0/", flip), "fork", "doesn't begin with"},
		"RFC 6962, no entries": {both(without(b.log, "/checkpoint"), without(b.log, "/ct/v1/get-entries"), "/ct/v1/get-entries"), "withheld", "entries from 20"},
		"RFC 6962, nonsense":   {both(without(b.log, "/checkpoint"), changed(b.log, "/ct/v1/get-entries", func([]byte) []byte { return []byte(`{"entries":[{"leaf_input":"AAAA"}]}`) }), "/ct/v1/get-entries"), "entry", "can't be read"},
	} {
		b.lie.Store(&tt.lie)
		for range 2 {
			err := b.Look(t.Context())
			var c *follow.Contradiction
			if !errors.As(err, &c) || tt.kind != "" && c.Kind != tt.kind || !strings.Contains(err.Error(), tt.what) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(b.keeper.entries) != 20 || b.keeper.at.Size != 20 {
			t.Fatalf("%s: followed to %d", name, b.keeper.at.Size)
		}
	}
	b.checkEvidence(t)
	if n := testutil.CollectAndCount(b.registry, "mayfly_follow_contradictions_total"); n != 4 {
		t.Errorf("%d series of contradictions, want one a kind", n)
	}
	b.lie.Store(nil)
	b.follow(t, 320)
}

// both serves one path by the second handler.
func both(first, second http.HandlerFunc, path string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			second(w, r)
		} else {
			first(w, r)
		}
	}
}

// checkEvidence: a file of evidence has what shows it.
func (b *bench) checkEvidence(t *testing.T) {
	t.Helper()
	if all, err := os.ReadDir(b.evidence); len(all) > 10 || err != nil { // each was met twice
		t.Errorf("%d files of evidence, %v", len(all), err)
	}
	files, _ := filepath.Glob(filepath.Join(b.evidence, "fork-*.json"))
	shown := false
	for _, name := range files {
		raw, err := os.ReadFile(name)
		var e follow.Evidence
		if err == nil {
			err = json.Unmarshal(raw, &e)
		}
		if err != nil || e.Log != "https://log.example/2027" || len(e.LogID) != 64 || e.Found.IsZero() || !bytes.Contains(e.Shown, []byte("log.example/2027")) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		shown = shown || strings.Contains(e.What, "two trees of 20") && bytes.Contains(e.Followed, []byte("\n20\n")) && bytes.Contains(e.Shown, []byte("\n20\n"))
	}
	if !shown {
		t.Errorf("no evidence of two trees in %q", files)
	}
}

// TestTrouble: what may be the way's fault, or another's, is no evidence, and is bounded.
func TestTrouble(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.submit(t, b.log, 5, 5)
	old := httptest.NewRecorder()
	b.log.LocalReads().ServeHTTP(old, httptest.NewRequest(http.MethodGet, "/checkpoint", nil))
	b.submit(t, b.log, 5, 10)
	b.follow(t, 10)
	stale := changed(b.log, "/checkpoint", func([]byte) []byte { return old.Body.Bytes() })
	b.lie.Store(&stale)
	b.follow(t, 10) // a cache has it

	b.submit(t, b.log, 1, 11)
	stranger := newBench(t)
	var taken atomic.Int64
	for name, tt := range map[string]struct {
		lie  http.HandlerFunc
		what string
	}{
		"another key": {stranger.log.LocalReads().ServeHTTP, "not signed by the log"},
		"a portal":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not signed by the log"},
		"down":        {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusBadGateway) }, "502"},
		"no log":      {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusNotFound) }, "isn't there"},
		"endless": {both(without(b.log, "/none"), func(w http.ResponseWriter, _ *http.Request) {
			for {
				n, err := w.Write(make([]byte, 64<<10))
				taken.Add(int64(n))
				if err != nil {
					return
				}
			}
		}, "/tile/data/000.p/11"), "more than 2097152 bytes"},
	} {
		b.lie.Store(&tt.lie)
		err := b.Look(t.Context())
		if c := (*follow.Contradiction)(nil); err == nil || errors.As(err, &c) || !strings.Contains(err.Error(), tt.what) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if files, err := os.ReadDir(b.evidence); len(files) > 0 {
		t.Errorf("evidence of nothing: %v, %v", files, err)
	}
	if n := taken.Load(); n > 32<<20 {
		t.Errorf("%d bytes of a tile went out", n)
	}
	b.lie.Store(nil)
	b.follow(t, 11)
}

// TestRun: a follower that runs follows logs that come, and none that went; two of one
// keeper miss and double nothing.
func TestRun(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.submit(t, b.log, 50, 50)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 2 {
		other, err := follow.New([]remote.Log{{Description: b.log.Description(), URL: "http://log", Client: &http.Client{Transport: local{b.log.LocalReads()}}}},
			follow.Options{Keeper: b.keeper, Evidence: b.evidence, Interval: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { _ = other.Run(ctx) })
	}
	running.Go(func() { _ = b.Run(ctx) })
	b.submit(t, b.log, 50, 100)
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		if at, _ := b.keeper.Position(ctx, b.log.Description()); at.Size == 100 {
			tick.Stop()
			break
		}
	}
	commit, err := b.Prepare(nil)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if s := b.Status(); len(s) != 0 {
		t.Errorf("%+v", s)
	}
	cancel()
	running.Wait()
	for i, e := range b.keeper.entries {
		if e.Index != uint64(i) {
			t.Fatalf("entry %d is %d", i, e.Index)
		}
	}
}

// TestStoreHangs: a look that its own minute ends is told of, as it followed nothing.
func TestStoreHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	about := b.log.Description()
	synctest.Test(t, func(t *testing.T) {
		f, err := follow.New([]remote.Log{{Description: about, URL: "http://log", Client: &http.Client{}}}, follow.Options{Keeper: &hanging{}})
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Look(t.Context())
		if s := f.Status()[0]; !errors.Is(s.Err, context.DeadlineExceeded) || !s.Looked.IsZero() {
			t.Errorf("%+v", s)
		}
	})
}

type hanging struct{ keeper }

func (*hanging) Position(ctx context.Context, _ ctlog.Description) (follow.Position, error) {
	<-ctx.Done()
	return follow.Position{}, ctx.Err()
}

type local struct{ http.Handler }

func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	l.ServeHTTP(w, r)
	return w.Result(), nil
}

// FuzzParseLeaf: no bytes make it panic, and what it takes is within them.
func FuzzParseLeaf(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01a\x00\x00"))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		if e, err := follow.ParseLeaf(leaf); err == nil && !bytes.Contains(leaf, e.Certificate) {
			t.Errorf("%x of %x", e.Certificate, leaf)
		}
	})
}
