package external_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is the embedded log behind HTTP, with submission on, and a handler
// before it that a test may let fail.
type fixture struct {
	*external.Log
	ca       *ctlogtest.CA
	key      *ctlogtest.Signer
	url      string
	requests *atomic.Int64 // submissions that arrived
}

// front decides about a submission before the log sees it; nil passes all on.
type front func(w http.ResponseWriter, r *http.Request, next http.Handler)

func open(t *testing.T, before front, edit func(*external.Config)) fixture {
	t.Helper()
	ca, key, dir := ctlogtest.NewCA(t), ctlogtest.NewSigner(t), t.TempDir()
	log, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(dir, "log")), MarkFile: setting.Path(filepath.Join(dir, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond, Submission: true,
	}, embedded.Options{Signer: key, Create: true, Roots: [][]byte{ca.Root.Raw}})
	if err != nil {
		t.Fatalf("opening the log: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if err := log.Close(ctx); err != nil {
			t.Errorf("closing the log: %v", err)
		}
	})
	requests := new(atomic.Int64)
	next := http.StripPrefix(log.Prefix(), log.Handler())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			// Each comes from another network: one address may submit little at once.
			r.RemoteAddr = fmt.Sprintf("[2001:db8:0:%x::1]:1", requests.Add(1)&0xffff)
			if before != nil {
				before(w, r, next)
				return
			}
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f := fixture{ca: ca, key: key, url: server.URL + log.Prefix(), requests: requests}
	c := external.Config{URL: f.url, KeyFile: setting.Path(filepath.Join(dir, "key.pem"))}
	if err := os.WriteFile(string(c.KeyFile), key.PEM(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(&c)
	}
	if f.Log, err = external.New(c, external.Options{}); err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(f.Close)
	return f
}

func status(code int, header ...string) front {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		http.Error(w, "no", code)
	}
}

// silence answers nothing until the client goes away, which the server notices
// only once the body is read.
func silence(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// drop ends the connection without an answer.
func drop(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// TestOutageEndsInTimeAfterBoundedAttempts: an outage ends as LogUnavailable with a time to come back, within
// the deadline, after a bounded number of attempts (408 is a hot loop in
// certificate-transparency-go's own client); a refusal is asked once.
func TestOutageEndsInTimeAfterBoundedAttempts(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		front      front
		outage     bool
		most       int64 // attempts in a second
		retryAfter time.Duration
	}{
		"400":           {front: status(400), most: 1},
		"401":           {front: status(401), most: 1},
		"404":           {front: status(404), most: 1},
		"413":           {front: status(413), most: 1},
		"307":           {front: status(307, "Location", "/elsewhere"), most: 1},
		"408":           {front: status(408), outage: true, most: 8},
		"429":           {front: status(429), outage: true, most: 8},
		"429 with time": {front: status(429, "Retry-After", "30"), outage: true, most: 1, retryAfter: 30 * time.Second},
		"500":           {front: status(500), outage: true, most: 8},
		"502":           {front: status(502), outage: true, most: 8},
		"503 with time": {front: status(503, "Retry-After", "7"), outage: true, most: 1, retryAfter: 7 * time.Second},
		"504":           {front: status(504), outage: true, most: 8},
		"dropped":       {front: drop, outage: true, most: 8},
		"silent":        {outage: true, most: 1, front: silence},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t, tt.front, nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := f.Submit(ctx, f.ca.Chain(t))
			if err == nil {
				t.Fatal("an SCT from a failing log")
			}
			got := fault.From(err)
			if tt.outage != (got.Reason == fault.LogUnavailable) || !tt.outage && got.Kind() != fault.Internal {
				t.Errorf("classified as %s: %v", got.Reason, err)
			}
			if tt.outage && got.RetryAfter < max(tt.retryAfter, time.Second) {
				t.Errorf("Retry-After %s, want at least %s", got.RetryAfter, max(tt.retryAfter, time.Second))
			}
			if n := f.requests.Load(); n < 1 || n > tt.most {
				t.Errorf("%d attempts, want 1 to %d", n, tt.most)
			}
		})
	}
}

// TestConnectionRefused: nobody listens.
func TestConnectionRefused(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	f := open(t, nil, func(c *external.Config) { c.URL = gone.URL })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := f.Submit(ctx, f.ca.Chain(t))
	if got := fault.From(err); got.Reason != fault.LogUnavailable || got.Cause == nil {
		t.Errorf("got %v, want LOG_UNAVAILABLE with the cause", err)
	}
}

// TestRecovers: a log that fails twice is asked again, by a client that has
// forgotten the last submission's trouble.
func TestRecovers(t *testing.T) {
	t.Parallel()
	var failed atomic.Int64
	f := open(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if failed.Add(1) <= 2 {
			status(503)(w, r, nil)
			return
		}
		next.ServeHTTP(w, r)
	}, nil)
	if _, err := f.Submit(t.Context(), f.ca.Chain(t)); err != nil {
		t.Fatalf("Submit: %v", err)
	}
	before := f.requests.Load()
	if _, err := f.Submit(t.Context(), f.ca.Chain(t)); err != nil {
		t.Fatalf("Submit: %v", err)
	}
	if n := f.requests.Load() - before; n != 1 {
		t.Errorf("a submission after the outage made %d requests", n)
	}
}

// TestNextAttemptGetsTheLostReply: the log took the entry and the answer was lost; the next
// attempt gets the promise for the same entry.
func TestNextAttemptGetsTheLostReply(t *testing.T) {
	t.Parallel()
	var lost atomic.Bool
	var first struct {
		Timestamp  uint64 `json:"timestamp"`
		Extensions []byte `json:"extensions"`
	}
	f := open(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if lost.Swap(true) {
			next.ServeHTTP(w, r)
			return
		}
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		if err := json.Unmarshal(recorder.Body.Bytes(), &first); err != nil {
			t.Errorf("the lost answer: %v", err)
		}
		drop(w, r, nil)
	}, nil)
	chain := f.ca.Chain(t)
	p, err := ctlog.NewPolicy([]ctlog.Log{f}, ctlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	scts, err := p.Submit(t.Context(), chain)
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	if scts[0].Timestamp != first.Timestamp || string(scts[0].Extensions) != string(first.Extensions) {
		t.Error("the second attempt was logged as another entry")
	}
}

// TestFalseAnswerNeverPasses: whatever a log answers instead of a true SCT, the policy lets nothing
// through. certificate-transparency-go's client takes several of these as good.
func TestFalseAnswerNeverPasses(t *testing.T) {
	t.Parallel()
	key, other := ctlogtest.NewSigner(t), ctlogtest.NewSigner(t)
	ca := ctlogtest.NewCA(t)
	chain, another := ca.Chain(t), ca.Chain(t)
	now := time.Now()
	index, err := ctlog.LeafIndexExtension(7)
	if err != nil {
		t.Fatal(err)
	}
	body := func(s ctlog.SCT) string { return answer(t, 0, s) }
	wrongID := key.SCT(t, chain, now, index)
	wrongID.LogID[31] ^= 1
	for name, text := range map[string]string{
		"wrong log id":          body(wrongID),
		"another key":           body(withID(other.SCT(t, chain, now, index), key.SCT(t, chain, now, index).LogID)),
		"another certificate's": body(key.SCT(t, another, now, index)),
		"a year ago":            body(key.SCT(t, chain, now.AddDate(-1, 0, 0), index)),
		"an hour ago":           body(key.SCT(t, chain, now.Add(-time.Hour), index)),
		"in an hour":            body(key.SCT(t, chain, now.Add(time.Hour), index)),
		"short leaf index":      body(key.SCT(t, chain, now, []byte{0, 0, 4, 0, 0, 0, 7})),
		"version 2":             answer(t, 1, key.SCT(t, chain, now, index)),
		"version 257":           answer(t, 256, key.SCT(t, chain, now, index)), // the first one in its lowest byte
		"not JSON":              "<html>",
		"empty object":          "{}",
		"endless":               `{"id":"` + strings.Repeat("A", 1<<20) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(text))
			}))
			defer server.Close()
			path := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(path, key.PEM(t), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := external.New(external.Config{URL: server.URL, KeyFile: setting.Path(path)}, external.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			p, err := ctlog.NewPolicy([]ctlog.Log{l}, ctlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			scts, err := p.Submit(t.Context(), chain)
			if err == nil {
				t.Fatalf("accepted %v", scts)
			}
			if got := fault.From(err); got.Kind() != fault.Internal {
				t.Errorf("classified as %s: %v", got.Reason, err)
			}
		})
	}
}

func withID(s ctlog.SCT, id [32]byte) ctlog.SCT { s.LogID = id; return s }

// answer is the body of add-pre-chain's answer.
func answer(t *testing.T, version int, s ctlog.SCT) string {
	t.Helper()
	signature := append([]byte{4, 3, byte(len(s.Signature) >> 8), byte(len(s.Signature))}, s.Signature...)
	raw, err := json.Marshal(map[string]any{
		"sct_version": version, "id": s.LogID[:], "timestamp": s.Timestamp,
		"extensions": base64.StdEncoding.EncodeToString(s.Extensions), "signature": signature,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestCheckRoots: the chain is cut where the log's list says, and a log that
// accepts nothing of it is refused.
func TestCheckRoots(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	chain := [][]byte{ca.Intermediate.Raw, ca.Root.Raw}
	for name, tt := range map[string]struct {
		roots [][]byte
		sent  int // certificates in a submission; 0: refused at start
	}{
		"root":              {roots: [][]byte{ca.Root.Raw}, sent: 3},
		"intermediate only": {roots: [][]byte{ca.Intermediate.Raw}, sent: 2},
		"both":              {roots: [][]byte{ca.Root.Raw, ca.Intermediate.Raw}, sent: 2},
		"strangers":         {roots: [][]byte{ctlogtest.NewCA(t).Root.Raw}},
		"none":              {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					_ = json.NewEncoder(w).Encode(map[string]any{"certificates": tt.roots})
					return
				}
				var body struct{ Chain [][]byte }
				_ = json.NewDecoder(r.Body).Decode(&body)
				sent.Store(int64(len(body.Chain)))
				http.Error(w, "no", http.StatusBadRequest)
			}))
			defer server.Close()
			f := open(t, nil, func(c *external.Config) { c.URL = server.URL })
			err := f.CheckRoots(t.Context(), chain)
			if (err == nil) != (tt.sent > 0) {
				t.Fatalf("CheckRoots: %v", err)
			}
			if tt.sent == 0 {
				return
			}
			if _, err := f.Submit(t.Context(), ca.Chain(t)); err == nil {
				t.Fatal("an SCT from a refusal")
			}
			if got := int(sent.Load()); got != tt.sent {
				t.Errorf("sent %d certificates, want %d", got, tt.sent)
			}
		})
	}
}

// TestBreaker: after five outages in a row the log is left alone, and one
// submission tries after the pause.
func TestBreaker(t *testing.T) {
	t.Parallel()
	var healthy atomic.Bool
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if healthy.Load() {
			http.Error(w, "I am back, but refuse this", http.StatusBadRequest)
			return
		}
		w.Header().Set("Retry-After", "60")
		http.Error(w, "down", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	key, ca := ctlogtest.NewSigner(t), ctlogtest.NewCA(t)
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, key.PEM(t), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := external.New(external.Config{URL: server.URL, KeyFile: setting.Path(path)}, external.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	submit := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := l.Submit(ctx, ca.Chain(t))
		return err
	}
	for range 5 {
		if err := l.Ready(t.Context()); err != nil {
			t.Fatalf("left alone too early: %v", err)
		}
		if got := fault.From(submit()); got.Reason != fault.LogUnavailable {
			t.Fatalf("got %v", got)
		}
	}
	if err := l.Ready(t.Context()); err == nil {
		t.Error("ready after five outages in a row")
	}
	healthy.Store(true)
	if got := fault.From(submit()); got.Reason != fault.LogUnavailable || got.RetryAfter <= 0 {
		t.Errorf("not left alone: %v", got)
	}
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	if got := fault.From(submit()); got.Kind() != fault.Internal {
		t.Errorf("the log answered 400, got %v", got)
	}
	if err := l.Ready(t.Context()); err != nil {
		t.Errorf("an answer closes the breaker: %v", err)
	}
}

// TestInFlight: more submissions than the cap are refused at once, not queued.
func TestInFlight(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	f := open(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		close(arrived)
		silence(w, r, nil)
	}, func(c *external.Config) { c.MaxInFlight = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.Submit(ctx, f.ca.Chain(t))
		done <- err
	}()
	<-arrived
	if _, err := f.Submit(t.Context(), f.ca.Chain(t)); fault.From(err).Reason != fault.LogUnavailable {
		t.Errorf("got %v, want a refusal", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestNew: what can't be verified with or sent is refused at start.
func TestNew(t *testing.T) {
	t.Parallel()
	key := ctlogtest.NewSigner(t)
	dir := t.TempDir()
	file := func(name string, content []byte) setting.Path {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return setting.Path(path)
	}
	good := file("key.pem", key.PEM(t))
	for name, c := range map[string]external.Config{
		"no key file": {URL: "https://log.example", KeyFile: setting.Path(filepath.Join(dir, "none"))},
		"not PEM":     {URL: "https://log.example", KeyFile: file("text", []byte("hello"))},
		"two keys":    {URL: "https://log.example", KeyFile: file("two", append(key.PEM(t), ctlogtest.NewSigner(t).PEM(t)...))},
		"no CA":       {URL: "https://log.example", KeyFile: good, CAFile: file("ca", []byte("hello"))},
		"empty token": {URL: "https://log.example", KeyFile: good, Token: setting.Secret{File: file("token", nil)}},
	} {
		if _, err := external.New(c, external.Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestToken: the token and the agent's name are sent with each request.
func TestToken(t *testing.T) {
	t.Parallel()
	t.Run("sent", func(t *testing.T) {
		var header atomic.Value
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := open(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			header.Store(r.Header.Get("Authorization") + " " + r.Header.Get("User-Agent"))
			http.Error(w, "no", http.StatusBadRequest)
		}, func(c *external.Config) { c.Token = setting.Secret{File: setting.Path(token)} })
		_, err := f.Submit(t.Context(), f.ca.Chain(t))
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("got %v", err)
		}
		if got, _ := header.Load().(string); !strings.HasPrefix(got, "Bearer s3cret mayfly") {
			t.Errorf("headers %q", got)
		}
	})
	t.Run("read", func(t *testing.T) {
		// Both are one server: what decides is the URL.
		var seen sync.Map
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen.Store(r.URL.Path, r.Header.Get("Authorization")) }))
		defer server.Close()
		dir := t.TempDir()
		for name, content := range map[string][]byte{"key.pem": ctlogtest.NewSigner(t).PEM(t), "token": []byte("s3cret")} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := external.New(external.Config{
			URL: "HTTP" + strings.TrimPrefix(server.URL, "http") + "/2027", KeyFile: setting.Path(filepath.Join(dir, "key.pem")), Token: setting.Secret{File: setting.Path(filepath.Join(dir, "token"))},
		}, external.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for path, want := range map[string]string{"/2027/checkpoint": "Bearer s3cret", "/20270/checkpoint": "", "/tiles/checkpoint": ""} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := l.Reader().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if got, _ := seen.Load(path); got != want {
				t.Errorf("%s was asked for with %q, want %q", path, got, want)
			}
		}
	})
}
