package tuf

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// get is what o answers for a path.
func get(o *Online, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	o.ServeHTTP(w, httptest.NewRequest(http.MethodGet, Prefix+path, nil))
	return w
}

// read gets files of o, as a client's fetcher.
func (o *Online) read(path string) ([]byte, error) {
	switch w := get(o, path); w.Code {
	case http.StatusOK:
		return w.Body.Bytes(), nil
	case http.StatusNotFound:
		return nil, os.ErrNotExist
	default:
		return nil, fmt.Errorf("%d: %s", w.Code, w.Body)
	}
}

// TestServed: each file with how long it may be kept; what isn't there is 404, which
// ends a client's way from root to root.
func TestServed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	o, err := NewOnline(r.options(func() time.Time { return noon }, ""))
	r.must(err)
	if w := get(o, "1.root.json"); w.Code != http.StatusNotFound || o.Check(t.Context()) == nil {
		t.Errorf("nothing is published: %d", w.Code)
	}
	r.begin(noon)
	r.take(o)
	repo := r.load()
	version := dayOf(noon)*perDay + 1
	for path, cache := range map[string]string{
		"timestamp.json": "no-cache", "1.root.json": "public, max-age=31536000, immutable", "1.targets.json": "public, max-age=31536000, immutable",
		versioned(version, "snapshot"): "public, max-age=31536000, immutable", versioned(version, "crl"): "public, max-age=31536000, immutable",
		hashed(TrustedRoot, repo.targets.Signed.Targets[TrustedRoot]): "public, max-age=31536000, immutable",
	} {
		if w := get(o, path); w.Code != http.StatusOK || w.Header().Get("Cache-Control") != cache || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	for _, path := range []string{"", "2.root.json", "root.json", "snapshot.json", "targets/" + TrustedRoot, "1.snapshot.json", "published.json", "../1.root.json", "targets/../1.root.json"} {
		if w := get(o, path); w.Code != http.StatusNotFound || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") || w.Header().Get("Cache-Control") != "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	request := httptest.NewRequest(http.MethodGet, Prefix+"timestamp.json", nil)
	request.Header.Set("If-None-Match", get(o, "timestamp.json").Header().Get("ETag"))
	w := httptest.NewRecorder()
	if o.ServeHTTP(w, request); w.Code != http.StatusNotModified {
		t.Errorf("a timestamp that the client has: %d", w.Code)
	}
}

func (r *rig) options(now func() time.Time, mark string) Options {
	return Options{Key: r.online, Mark: mark, Now: now, Logger: slog.New(slog.DiscardHandler), Metrics: newRegistry()}
}

// TestReplicas: three services that share nothing but the folder's content answer byte
// for byte alike, also for the days around midnight.
func TestReplicas(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	clock := noon
	var replicas []*Online
	for range 3 {
		copied := filepath.Join(t.TempDir(), "tuf")
		r.must(os.CopyFS(copied, os.DirFS(r.dir)))
		one := *r
		one.dir = copied
		replicas = append(replicas, one.serve(func() time.Time { return clock }, ""))
	}
	for _, at := range []time.Time{noon, noon.Add(12*time.Hour - time.Minute), noon.Add(12 * time.Hour), noon.Add(36 * time.Hour)} {
		clock = at
		for _, o := range replicas {
			o.refresh(t.Context())
		}
		version := dayOf(at)*perDay + 1
		for _, path := range []string{"timestamp.json", versioned(version, "snapshot"), versioned(version, "crl"), versioned(dayOf(at.Add(ahead))*perDay+1, "snapshot")} {
			first := get(replicas[0], path)
			for i, o := range replicas[1:] {
				if w := get(o, path); w.Code != http.StatusOK || w.Body.String() != first.Body.String() {
					t.Errorf("%v, replica %d, %s: %d", at, i+1, path, w.Code)
				}
			}
		}
	}
}

// TestMonth: for 30 days a client that remembers follows each day, through publications
// and a root's rotation; the second half with a service that has started anew.
func TestMonth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	first := r.begin(noon).FirstRoot()
	clock, cache, mark := noon, t.TempDir(), filepath.Join(t.TempDir(), "mark")
	o := r.serve(func() time.Time { return clock }, mark)
	last := int64(0)
	for n := range 30 {
		clock = noon.Add(time.Duration(n) * day)
		switch n {
		case 7, 22:
			r.input.Authorities = append(r.input.Authorities, newAuthority(t, fmt.Sprint("day ", n), clock))
			r.publish(r.signed(r.stage(clock), r.people[1:]...), clock)
			r.take(o)
		case 12:
			old := r.people
			r.people = []kms.Signer{old[0], newSigner(t), newSigner(t)}
			d, err := Rotate(r.load(), r.keys(), clock)
			r.must(err)
			r.publish(r.signed(d, append(old, r.people[1:]...)...), clock)
			r.take(o)
		case 15:
			o = r.serve(func() time.Time { return clock }, mark)
		}
		o.refresh(t.Context())
		got, _, err := follow(first, o.read, cache, clock)
		if err != nil {
			t.Fatalf("day %d: %v", n, err)
		}
		if got[TrustedRoot] != string(r.documents().TrustedRoot) {
			t.Errorf("day %d: another trusted root", n)
		}
		version := o.Roles()[3].Version
		if version <= last {
			t.Errorf("day %d: version %d after %d", n, version, last)
		}
		last = version
	}
}

// TestClockSetBack: a version that clients have seen isn't followed by a lower one,
// neither by the process nor by the one that starts after it.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	first := r.begin(noon).FirstRoot()
	clock, cache, mark := noon, t.TempDir(), filepath.Join(t.TempDir(), "mark")
	follows := func(o *Online, what string) {
		t.Helper()
		o.refresh(t.Context())
		if _, _, err := follow(first, o.read, cache, clock); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	o := r.serve(func() time.Time { return clock }, mark)
	clock = noon.Add(2 * day)
	follows(o, "two days later")
	clock = noon.Add(day)
	follows(o, "the clock a day back")
	r.publish(r.signed(r.stage(clock), r.people[:2]...), clock)
	r.take(o)
	follows(o, "and other targets")
	follows(r.serve(func() time.Time { return clock }, mark), "a new process")
	if detail := strings.Join(o.Detail(), "\n"); !strings.Contains(detail, "the clock was set back") {
		t.Errorf("nobody is told: %s", detail)
	}
	// Without the mark the client is the judge of this test: it refuses.
	forgetful := r.serve(func() time.Time { return clock }, "")
	if _, _, err := follow(first, forgetful.read, cache, clock); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("a lower version: %v", err)
	}
	r.must(os.WriteFile(mark, []byte("tomorrow\n"), 0o600))
	broken, err := NewOnline(r.options(func() time.Time { return clock }, mark))
	r.must(err)
	if _, _, err := broken.Prepare(t.Context(), r.load()); err == nil || !strings.Contains(err.Error(), "doesn't hold the number of a day") {
		t.Errorf("a damaged mark: %v", err)
	}
}

// failingKey signs while it works.
type failingKey struct {
	kms.Signer
	broken atomic.Bool
}

func (k *failingKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.broken.Load() {
		return nil, errors.New("the KMS is gone")
	}
	return k.Signer.Sign(ctx, digest, opts)
}

// said is what was logged since it was last asked for.
type said struct {
	mu   sync.Mutex
	text []byte
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, b...)
	return len(b), nil
}

func (s *said) taken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := string(s.text)
	s.text = nil
	return text
}

// TestClockSetAhead: a clock that is a month ahead for a moment leaves nothing signed for then. One
// that stays ahead, as after a sleep, is believed.
func TestClockSetAhead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	clock := noon
	o := r.serve(func() time.Time { return clock }, "")
	version := func() int64 { return o.Roles()[3].Version }
	first := version()
	look := func(days, times int) {
		clock = noon.Add(time.Duration(days) * day)
		for range times {
			o.refresh(t.Context())
		}
	}
	look(0, 1)
	look(30, leapLooks-1)
	if got := version(); got != first {
		t.Errorf("signed for a month ahead: version %d, was %d", got, first)
	}
	r.publish(r.signed(r.stage(clock), r.people[:2]...), clock)
	r.take(o)
	if got := version(); got != first+1 {
		t.Errorf("published while the clock is ahead: version %d, want %d", got, first+1)
	}
	look(1, 1)
	if got := version(); got != first+1+perDay {
		t.Errorf("the day after: version %d, want %d", got, first+1+perDay)
	}
	look(4, leapLooks+1)
	if got := version(); got != first+1+4*perDay {
		t.Errorf("after a sleep of three days: version %d, want %d", got, first+1+4*perDay)
	}
}

// TestRefresherStopped: a key that fails is told of at once and from half of the
// life on; clients follow for 7 days and not longer, and a key that works again mends it.
func TestRefresherStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	synctest.Test(t, func(t *testing.T) {
		begin := epoch.Add(100 * day)
		time.Sleep(time.Until(begin)) //nolint:forbidigo // the bubble's clock
		r.TB = t
		key := &failingKey{Signer: r.online}
		r.online = key
		first := r.begin(time.Now()).FirstRoot()
		var log said
		o, err := NewOnline(Options{Key: key, Now: time.Now, Logger: slog.New(slog.NewTextHandler(&log, nil)), Metrics: newRegistry()})
		r.must(err)
		r.take(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- o.Run(ctx) }()
		until := func(d time.Duration) string {
			time.Sleep(time.Until(begin.Add(d))) //nolint:forbidigo // the bubble's clock
			synctest.Wait()
			return log.taken()
		}
		follows := func() error {
			_, _, err := follow(first, o.read, t.TempDir(), time.Now())
			return err
		}
		if text := until(day - ahead - time.Second); text != "" {
			t.Errorf("all is well, and the log says %s", text)
		}
		key.broken.Store(true)
		if text := until(day); strings.Count(text, "the TUF timestamp can't be signed") != 1 {
			t.Errorf("told of the key: %s", text)
		}
		if text := until(OnlineLife/2 - time.Minute); strings.Contains(text, "expires") || o.Check(ctx) == nil {
			t.Errorf("before the half of its life: %s", text)
		}
		if text := until(OnlineLife/2 + 2*time.Hour); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "role=timestamp percent_of_life_remaining=49") {
			t.Errorf("after the half of its life: %s", text)
		}
		until(OnlineLife - time.Second)
		if err := follows(); err != nil {
			t.Errorf("a client before the end of 7 days: %v", err)
		}
		until(OnlineLife)
		if w := get(o, "timestamp.json"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "expired") {
			t.Errorf("after 7 days: %d %s", w.Code, w.Body)
		}
		if err := follows(); err == nil {
			t.Error("a client follows after 7 days")
		}
		key.broken.Store(false)
		if text := until(OnlineLife + 2*time.Minute); !strings.Contains(text, "is signed again") {
			t.Errorf("the key works again: %s", text)
		}
		if err := errors.Join(follows(), o.Check(ctx)); err != nil {
			t.Errorf("the key works again: %v", err)
		}
		cancel()
		r.must(<-done)
	})
}

// TestDamage: a client that has the first root refuses whatever isn't what was signed.
func TestDamage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	first := r.begin(noon).FirstRoot()
	clock := noon
	o := r.serve(func() time.Time { return clock }, "")
	old := make(map[string][]byte)
	for _, path := range []string{"timestamp.json", "1.targets.json"} {
		old[path], _ = o.read(path)
	}
	cache := t.TempDir()
	r.input.Authorities = append(r.input.Authorities, newAuthority(t, "second", noon))
	clock = noon.Add(day)
	r.publish(r.signed(r.stage(clock), r.people[:2]...), clock)
	r.take(o)
	if _, _, err := follow(first, o.read, cache, clock); err != nil {
		t.Fatal(err)
	}
	target := hashed(TrustedRoot, r.load().targets.Signed.Targets[TrustedRoot])
	snapshot := versioned(dayOf(clock)*perDay+2, "snapshot")
	for name, c := range map[string]struct {
		path   string
		change func([]byte) []byte
	}{
		"replayed timestamp": {"timestamp.json", func([]byte) []byte { return old["timestamp.json"] }},
		"tampered timestamp": {"timestamp.json", func(b []byte) []byte { return []byte(strings.Replace(string(b), "2026-12", "2027-12", 1)) }},
		"truncated snapshot": {snapshot, func(b []byte) []byte { return b[:len(b)/2] }},
		"mixed targets":      {"2.targets.json", func([]byte) []byte { return old["1.targets.json"] }},
		"tampered targets":   {"2.targets.json", func(b []byte) []byte { return []byte(strings.Replace(string(b), `"length": `, `"length": 1`, 1)) }},
		"tampered target":    {target, func(b []byte) []byte { return []byte(strings.Replace(string(b), "log.example", "lag.example", 1)) }},
		"null in targets": {"2.targets.json", func([]byte) []byte {
			return []byte(`{"signed":{"_type":"targets","targets":{"x":null}},"signatures":[]}`)
		}},
	} {
		changed := func(path string) ([]byte, error) {
			b, err := o.read(path)
			if path == c.path && err == nil {
				if b = c.change(b); b == nil {
					err = io.ErrUnexpectedEOF
				}
			}
			return b, err
		}
		folder := t.TempDir()
		if strings.HasPrefix(name, "replayed") {
			folder = cache
		}
		if _, _, err := follow(first, changed, folder, clock); err == nil {
			t.Errorf("%s: the client takes it", name)
		}
	}
}

// TestVerifyURL: over HTTP, the client sees what the service serves.
func TestVerifyURL(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	first := r.begin(noon).FirstRoot()
	web := httptest.NewServer(r.serve(func() time.Time { return noon }, ""))
	defer web.Close()
	v, err := Verify(t.Context(), web.URL+"/tuf", first, noon)
	r.must(err)
	if len(v.Roles) != 4 || v.Roles[3].Version != dayOf(noon)*perDay+1 || v.Files[TrustedRoot] != string(r.documents().TrustedRoot) {
		t.Errorf("verified %+v", v.Roles)
	}
	if _, err := Verify(t.Context(), web.URL+"/tuf", first, noon.Add(OnlineLife)); err == nil {
		t.Error("expired, and verified")
	}
	other := newRig(t)
	other.must(os.MkdirAll(other.dir, 0o700))
	if _, err := Verify(t.Context(), web.URL+"/tuf", other.begin(noon).FirstRoot(), noon); err == nil {
		t.Error("verified with another's root")
	}
}

// TestFollowUnderLoad: clients that pinned the first root follow roots 1 to 3, another
// authority and another log while they ask without a pause, and none is refused.
func TestFollowUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	first := r.begin(noon).FirstRoot()
	web := httptest.NewServer(r.serve(func() time.Time { return noon }, ""))
	defer web.Close()
	o, _ := web.Config.Handler.(*Online)
	stop := make(chan struct{})
	clients, ctx := errgroup.WithContext(t.Context())
	var followed atomic.Int64
	for range 4 {
		cache := t.TempDir()
		clients.Go(func() error {
			get := func(path string) ([]byte, error) { return Fetch(t.Context(), web.URL+Prefix+path) }
			for {
				if _, _, err := follow(first, get, cache, noon); err != nil {
					return err
				}
				followed.Add(1)
				select {
				case <-stop:
					return nil
				default:
				}
			}
		})
	}
	old := r.people
	for n, change := range []func() *Draft{
		func() *Draft {
			r.input.Authorities = append(r.input.Authorities, newAuthority(t, "second", noon))
			return r.stage(noon)
		},
		func() *Draft {
			r.input.CTLogs = append(r.input.CTLogs, newLog(t, "https://log.example/2"))
			return r.stage(noon)
		},
		func() *Draft {
			r.people = []kms.Signer{old[0], newSigner(t), newSigner(t)}
			d, err := Rotate(r.load(), r.keys(), noon)
			r.must(err)
			return d
		},
		func() *Draft {
			r.people = append(r.people[1:], newSigner(t))
			d, err := Rotate(r.load(), r.keys(), noon)
			r.must(err)
			return d
		},
	} {
		signers := r.people[:2] // two of the root in force, and all that are new
		d := change()
		for _, k := range r.people {
			if !slices.Contains(signers, k) {
				signers = append(signers[:len(signers):len(signers)], k)
			}
		}
		r.publish(r.signed(d, signers...), noon)
		at := followed.Load()
		r.take(o)
		for followed.Load() < at+8 && ctx.Err() == nil {
			runtime.Gosched()
		}
		if n == 3 && r.load().state.Root != 3 {
			t.Errorf("root %d", r.load().state.Root)
		}
	}
	close(stop)
	if err := clients.Wait(); err != nil {
		t.Error(err)
	}
}
