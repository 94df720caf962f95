package revoke

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// ListPath is where lists are served: ListPath + ID + ".crl".
const ListPath = "/crl/"

// Lists keeps a list for each authority: on disk, signed again daily and when a
// certificate is revoked, beside the requests. What an authority signed last stays, and
// is served for good. It is safe for concurrent use.
type Lists struct {
	log     *Log
	dir     logdir.Dir
	o       ListOptions
	metrics *metrics

	mu      sync.Mutex           // guards what follows
	active  *held                // nil before Use
	ended   []*held              // whose last list is to be signed
	current map[string]list      // by ID
	told    map[string]list      // of those that Changed was told of
	again   map[string]time.Time // when what failed is tried again; Run's own
	woken   chan struct{}
}

// held is an authority whose key is kept open for lists.
type held struct {
	Signing
	release func()
}

// list is what is known of a list on disk.
type list struct {
	number, entries uint64
	at, next        time.Time
}

// ListOptions are what Lists works with.
type ListOptions struct {
	// Open opens the key of an authority that signs no more, by its ID, for as long as
	// it isn't released. The error says that it can't be had.
	Open func(ctx context.Context, id string) (s Signing, release func(), err error)
	// Changed is told of all lists, in DER by ID, and the sum of their numbers, once at the
	// start and when any of them has changed; nil where nobody asks.
	Changed func(ctx context.Context, number uint64, lists map[string][]byte)
	Now     func() time.Time
	Logger  *slog.Logger
}

// openLists reads the lists that are on disk. It refuses one that is newer than the
// log: numbers never go back.
func openLists(c Config, log *Log, o ListOptions, m *metrics) (*Lists, error) {
	l := &Lists{log: log, dir: logdir.Dir(filepath.Join(string(c.Directory), listsName)), o: o, metrics: m, current: map[string]list{}, again: map[string]time.Time{}, woken: make(chan struct{}, 1)}
	if err := l.dir.Make(); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(string(l.dir))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".crl")
		if !ok {
			continue
		}
		der, err := os.ReadFile(l.dir.Path(f.Name()))
		if err != nil {
			return nil, err
		}
		on, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("the list %s is damaged: restore it, or remove it and it is signed again where its key is: %w", f.Name(), err)
		}
		l.current[id] = known(on)
		if n := on.Number.Uint64(); n > log.Size() {
			return nil, fmt.Errorf("the list %s has the number %d, and there are %d statements: restore the newest directory", f.Name(), n, log.Size())
		}
	}
	return l, nil
}

func known(on *x509.RevocationList) list {
	return list{on.Number.Uint64(), uint64(len(on.RevokedCertificateEntries)), on.ThisUpdate, on.NextUpdate}
}

// Use says which authority signs from now on, whose key stays open until release is
// called: after its last list, when another has followed.
func (l *Lists) Use(s Signing, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.active; before != nil && before.Certificate.Equal(s.Certificate) {
		before.release() // the same key, opened again
	} else if before != nil {
		l.ended = append(l.ended, &held{Signing{before.Certificate, before.Key, true}, before.release}) // another: sign may be reading before
	}
	l.active = &held{s, release}
	l.wake()
}

func (l *Lists) wake() {
	select {
	case l.woken <- struct{}{}:
	default:
	}
}

// The waits of Run: between looks, and after lists were signed, of which a large one
// takes seconds.
const (
	look       = time.Minute
	shortPause = time.Second
	longPause  = 30 * time.Second

	retry = time.Minute // after a failure
)

// Run keeps the lists until ctx ends.
func (l *Lists) Run(ctx context.Context) error {
	defer l.close()
	for ctx.Err() == nil {
		begun := time.Now()
		l.sign(ctx)
		if wait.For(ctx, min(max(shortPause, 4*time.Since(begun)), longPause)) == nil {
			_ = wait.OrWoken(ctx, look, l.woken)
		}
	}
	return nil
}

func (l *Lists) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range append(l.ended, l.active) {
		if h != nil {
			h.release()
		}
	}
	l.active, l.ended = nil, nil
}

// sign signs the lists that are due.
func (l *Lists) sign(ctx context.Context) {
	l.mu.Lock()
	active, ended, ids := l.active, slices.Clone(l.ended), slices.Collect(maps.Keys(l.current))
	l.mu.Unlock()
	behind := map[string]bool{}
	of := func(h *held) func(context.Context, string) (Signing, func(), error) {
		return func(context.Context, string) (Signing, func(), error) { return h.Signing, func() {}, nil }
	}
	for _, h := range ended {
		id := ID(h.Certificate)
		if behind[id] = !l.renew(ctx, id, of(h), func(on list) bool { return !on.final() }); !behind[id] {
			l.mu.Lock()
			l.ended = slices.DeleteFunc(l.ended, func(e *held) bool { return e == h })
			l.mu.Unlock()
			h.release()
		}
	}
	if active != nil {
		id := ID(active.Certificate)
		behind[id] = !l.renew(ctx, id, of(active), func(on list) bool { return l.old(on) || on.final() && !active.Last })
	}
	for _, id := range append(ids, l.log.authorities()...) {
		if _, done := behind[id]; !done {
			behind[id] = !l.renew(ctx, id, l.reopen, func(on list) bool { return !on.final() && l.old(on) })
		}
	}
	maps.DeleteFunc(behind, func(_ string, yes bool) bool { return !yes })
	l.metrics.behind.Set(float64(len(behind)))
	l.tell(ctx)
}

// tell tells of the lists as they are on disk, where they changed since it did last.
func (l *Lists) tell(ctx context.Context) {
	l.mu.Lock()
	ids, same := slices.Collect(maps.Keys(l.current)), maps.Equal(l.current, l.told)
	current := maps.Clone(l.current)
	number := uint64(0)
	for _, on := range l.current {
		number += on.number
	}
	l.mu.Unlock()
	if same || l.o.Changed == nil {
		return
	}
	all := make(map[string][]byte, len(ids))
	for _, id := range ids {
		der, err := os.ReadFile(l.dir.Path(id + ".crl"))
		if err != nil {
			l.o.Logger.ErrorContext(ctx, "a list of revoked certificates can't be read", slog.Any("error", err))
			return
		}
		all[id] = der
	}
	l.mu.Lock()
	l.told = current
	l.mu.Unlock()
	l.o.Changed(ctx, number, all)
}

func (l list) final() bool { return l.next.Equal(noEnd) }

func (l *Lists) old(on list) bool { return l.o.Now().Sub(on.at) >= resignAge }

// renew signs an authority's list where there is none, statements are missing in it, or it
// is stale. It reports whether the list is as it should be.
func (l *Lists) renew(ctx context.Context, id string, open func(context.Context, string) (Signing, func(), error), stale func(list) bool) bool {
	entries, size := l.log.entries(id)
	l.mu.Lock()
	on, ok := l.current[id]
	l.mu.Unlock()
	if ok && on.entries == uint64(len(entries)) && !stale(on) {
		return true
	}
	if l.o.Now().Before(l.again[id]) {
		return false
	}
	s, release, err := open(ctx, id)
	if err == nil {
		defer release()
		err = l.put(ctx, s, entries, size)
	}
	if err != nil {
		level := slog.LevelDebug
		if l.again[id].IsZero() { // once: a key that is gone is gone for good
			level = slog.LevelError
		}
		l.again[id] = l.o.Now().Add(retry)
		l.metrics.signed.WithLabelValues("failed").Inc()
		l.o.Logger.Log(ctx, level, "a list of revoked certificates can't be signed: the one before stays, and what was revoked since is in the statements alone; it is tried again",
			slog.String("authority", id), slog.Any("error", err))
		return false
	}
	delete(l.again, id)
	l.metrics.signed.WithLabelValues("ok").Inc()
	return true
}

// reopen opens the key of an authority that signs no more, for its last list.
func (l *Lists) reopen(ctx context.Context, id string) (Signing, func(), error) {
	s, release, err := l.o.Open(ctx, id)
	s.Last = true
	return s, release, err
}

// put signs a list and puts it in the place of the one before.
func (l *Lists) put(ctx context.Context, s Signing, entries []entry, size uint64) error {
	made, err := s.sign(ctx, entries, size, l.o.Now().UTC().Truncate(time.Second))
	if err != nil {
		return err
	}
	id := ID(s.Certificate)
	if err := l.dir.Put(made.Raw, id+".crl"); err != nil {
		return err
	}
	l.mu.Lock()
	l.current[id] = known(made)
	l.mu.Unlock()
	return nil
}

// Ready is nil unless a list that is served ends within a day, though another should
// have followed.
func (l *Lists) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, on := range l.current {
		if l.o.Now().After(on.next.Add(-resignAge)) {
			return fmt.Errorf("the list of the authority %s ends at %s, and its key has signed no other", id, on.next.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// ServeHTTP serves the lists below ListPath.
func (l *Lists) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, ListPath), ".crl")
	if _, err := hex.DecodeString(id); !ok || err != nil || id != strings.ToLower(id) {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(l.dir.Path(id + ".crl")) // #nosec G703 -- id is hexadecimal
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		http.Error(w, "the list can't be read", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/pkix-crl") // RFC 2585 §4.2
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge))
	h.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	limitTime(w, info.Size())
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// limitTime bounds how long a client may take for an answer of so many bytes.
func limitTime(w http.ResponseWriter, bytes int64) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime + time.Duration(bytes)*time.Second/answerSpeed))
}

// What a client may take for an answer: as a reader of a log.
const (
	answerTime  = 10 * time.Second
	answerSpeed = 64 << 10 // bytes a second
)
