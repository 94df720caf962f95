package tuf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

const (
	// ahead is how long before midnight the next day's files are signed and served by
	// their versioned names: a client may have the timestamp of a replica whose clock
	// is a little ahead.
	ahead = 15 * time.Minute
	// lookInterval is how often the clock is looked at.
	lookInterval = time.Minute
	// leapLooks is how many looks in a row have to find the clock more than a day further than
	// the look before them: what is signed for a day that isn't can't be taken back.
	leapLooks = 60
	// warnBelow is the part of a role's life, in percent, below which is warned, and
	// urgentBelow that below which it is an error.
	warnBelow, urgentBelow = 50, 10
)

// Options are what an Online works with.
type Options struct {
	Key     kms.Signer // the online key; it stays the caller's
	Mark    string     // file of the last day that was signed for; empty remembers none
	Now     func() time.Time
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Online serves what was published, with the snapshot and the timestamp that it signs
// for each day.
type Online struct {
	o       Options
	changes sync.Mutex // held by whoever makes the next site
	site    atomic.Pointer[site]
	failed  atomic.Pointer[error] // of the last attempt to sign; nil when it went well
	warned  map[string]int        // by role, the last percentage that was warned of; only Run's
	looked  int64                 // the day of the last look that was believed; guarded by changes
	leaps   int                   // looks in a row that weren't believed; guarded by changes
	lists   Lists                 // guarded by changes
}

// site is what is served. It doesn't change. It keeps what a client may be in the
// middle of reading: the files of the publication and of the day before.
type site struct {
	today, tomorrow, before *dayFiles // but for today, nil where there is none
}

// NewOnline makes an Online that serves nothing yet: see [Online.Prepare].
func NewOnline(o Options) (*Online, error) {
	on := &Online{o: o, warned: make(map[string]int)}
	var all []prometheus.Collector
	for i, name := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		read := func(metricName, help string, value func(Role) int64) {
			all = append(all, metric.Read(metricName, help, prometheus.Labels{"role": name}, func() float64 {
				if roles := on.Roles(); len(roles) > 0 {
					return float64(value(roles[i]))
				}
				return math.NaN()
			}))
		}
		read("mayfly_tuf_expiry_timestamp_seconds", "When the served TUF metadata of a role expires, in seconds since 1970; NaN while nothing is published.",
			func(r Role) int64 { return r.Expires.Unix() })
		read("mayfly_tuf_version", "Version of the served TUF metadata of a role; NaN while nothing is published.", func(r Role) int64 { return r.Version })
	}
	return on, metric.Register(o.Metrics, all...)
}

// Prepare signs for r, and gives two functions of which the caller calls one, once:
// commit has r served and can't fail, rollback gives it up. The error says why clients
// couldn't follow.
func (o *Online) Prepare(ctx context.Context, r *Repository) (commit, rollback func(), err error) {
	o.changes.Lock()
	next, err := o.prepare(ctx, r)
	if err != nil {
		o.changes.Unlock()
		return nil, nil, err
	}
	return func() { o.site.Store(next); o.changes.Unlock() }, o.changes.Unlock, nil
}

func (o *Online) prepare(ctx context.Context, r *Repository) (*site, error) {
	if err := r.CheckOnlineKey(o.o.Key.Public()); err != nil {
		return nil, err
	}
	now := o.site.Load()
	if now != nil {
		if err := r.follows(now.today.repo); err != nil {
			return nil, err
		}
	}
	number, err := o.day(now)
	if err != nil {
		return nil, err
	}
	return o.begin(ctx, r, number, now)
}

// begin signs for a day; now is what the site follows, or nil.
func (o *Online) begin(ctx context.Context, r *Repository, number int64, now *site) (*site, error) {
	today, err := r.online(ctx, o.o.Key, number, o.lists)
	if err != nil {
		return nil, err
	}
	return o.turn(today, now)
}

// turn is the site of a day, which the mark has from then on.
func (o *Online) turn(today *dayFiles, now *site) (*site, error) {
	next := &site{today: today}
	if now != nil {
		next.before = now.today
	}
	if now != nil && now.today.day == today.day {
		return next, nil
	}
	if err := mark(o.o.Mark).write(today.day); err != nil {
		return nil, fmt.Errorf("the mark of the last day: %w", err)
	}
	return next, nil
}

// day is the number of the day that it is, or was before the clock was set back: a
// version that a client has seen is never followed by a lower one. A leap that isn't
// believed yet counts for nothing.
func (o *Online) day(now *site) (int64, error) {
	number := dayOf(o.o.Now())
	if now != nil {
		if o.leapt(number) {
			number = now.today.day
		}
		return max(number, now.today.day), nil
	}
	marked, err := mark(o.o.Mark).read()
	return max(number, marked), err
}

// PublishLists has revocation lists served from now on, or from the first publication
// on. Lists of a lower number than before are passed over.
func (o *Online) PublishLists(ctx context.Context, lists Lists) error {
	o.changes.Lock()
	defer o.changes.Unlock()
	if lists.Number < o.lists.Number {
		return nil
	}
	o.lists = lists
	now := o.site.Load()
	if now == nil || now.today.lists.same(lists) {
		return nil
	}
	next, err := o.begin(ctx, now.today.repo, now.today.day, now)
	if err != nil {
		return fmt.Errorf("tuf: signing for revocation lists, which is tried again: %w", err)
	}
	o.site.Store(next)
	return nil
}

// Run signs for each day that begins, and warns of what ends, until ctx ends.
func (o *Online) Run(ctx context.Context) error {
	for {
		o.refresh(ctx)
		o.warn(ctx)
		midnight := day - o.o.Now().Sub(epoch)%day // replicas go over to the next day together
		if wait.For(ctx, min(lookInterval, midnight)) != nil {
			return nil //nolint:nilerr // the service ends
		}
	}
}

// refresh signs for today where that wasn't done, and shortly before midnight for
// tomorrow. Where it fails, what is served stays and it is tried again.
func (o *Online) refresh(ctx context.Context) {
	o.changes.Lock()
	defer o.changes.Unlock()
	now := o.site.Load()
	if now == nil || !o.believe(ctx) {
		return
	}
	next, err := o.next(ctx, now)
	if err != nil {
		if o.failed.Swap(&err) == nil {
			o.o.Logger.LogAttrs(ctx, slog.LevelError, "the TUF timestamp can't be signed; the last one is served until it expires", slog.Any("error", err), slog.Time("expires", now.today.expires))
		}
		return
	}
	if o.failed.Swap(nil) != nil {
		o.o.Logger.LogAttrs(ctx, slog.LevelInfo, "the TUF timestamp is signed again")
	}
	o.site.Store(next)
}

// leapt is whether the clock went ahead by more than a day, and hasn't stayed there yet: a machine
// that slept and a clock that is set wrong for a moment look alike.
func (o *Online) leapt(number int64) bool {
	return o.looked != 0 && number > o.looked+1 && o.leaps < leapLooks
}

// believe looks at the clock, and reports whether it may be signed for the day that it shows.
func (o *Online) believe(ctx context.Context) bool {
	number := dayOf(o.o.Now())
	if !o.leapt(number) {
		o.looked, o.leaps = number, 0
		return true
	}
	if o.leaps++; o.leaps == 1 {
		o.o.Logger.LogAttrs(ctx, slog.LevelError, "this machine's clock went ahead by days: the TUF timestamp is signed for the new day when the clock stays there",
			slog.Int64("days", number-o.looked), slog.Duration("stays", leapLooks*lookInterval), slog.String("advice", "correct the clock, or restart the service if it is right"))
	}
	return false
}

// next is the site after now, or now itself.
func (o *Online) next(ctx context.Context, now *site) (*site, error) {
	clock, repo := o.o.Now(), now.today.repo
	switch number, soon := dayOf(clock), dayOf(clock.Add(ahead)); {
	case number > now.today.day:
		if t := now.tomorrow; t != nil && t.day == number && t.lists.same(o.lists) {
			return o.turn(t, now)
		}
		return o.begin(ctx, repo, number, now)
	case !now.today.lists.same(o.lists):
		return o.begin(ctx, now.today.repo, now.today.day, now)
	case soon > now.today.day && (now.tomorrow == nil || now.tomorrow.day != soon):
		tomorrow, err := repo.online(ctx, o.o.Key, soon, o.lists)
		return &site{now.today, tomorrow, now.before}, err
	default:
		return now, nil
	}
}

// warn logs every role of whose life less than half is left, again with each percent.
func (o *Online) warn(ctx context.Context) {
	for _, r := range o.Roles() {
		left := r.Remains(o.o.Now())
		if last, known := o.warned[r.Name]; left >= warnBelow {
			delete(o.warned, r.Name)
			continue
		} else if known && left >= last {
			continue
		}
		o.warned[r.Name] = left
		level := slog.LevelWarn
		if left <= urgentBelow {
			level = slog.LevelError
		}
		o.o.Logger.LogAttrs(ctx, level, "TUF metadata expires, or has expired: then no client can verify anything", slog.String("role", r.Name),
			slog.Int("percent_of_life_remaining", left), slog.Time("expires", r.Expires), slog.String("advice", "sign it again: docs/tasks/tuf-expired.md"))
	}
}

// Roles are how all roles that are served stand; none while nothing is published.
func (o *Online) Roles() []Role {
	now := o.site.Load()
	if now == nil {
		return nil
	}
	roles := now.today.repo.Roles()
	for _, name := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		roles = append(roles, roleOf(now.today.repo.root, name, now.today.version, now.today.expires))
	}
	return roles
}

// Repository is what is served; nil while nothing is.
func (o *Online) Repository() *Repository {
	if now := o.site.Load(); now != nil {
		return now.today.repo
	}
	return nil
}

// Check fails when clients refuse what is served, or soon will because it isn't
// signed any more.
func (o *Online) Check(context.Context) error {
	roles := o.Roles()
	if len(roles) == 0 {
		return ErrNothing
	}
	var errs []error
	for i, r := range roles {
		if r.Expired(o.o.Now()) || i >= 2 && r.Remains(o.o.Now()) < warnBelow {
			errs = append(errs, fmt.Errorf("%s expires %s", r.Name, stamp(r.Expires)))
		}
	}
	if failed := o.failed.Load(); failed != nil {
		errs = append(errs, *failed)
	}
	return errors.Join(errs...)
}

// Detail says how each role stands, in words that anybody may read.
func (o *Online) Detail() []string {
	var lines []string
	for _, r := range o.Roles() {
		line := fmt.Sprintf("%s %d: until %s", r.Name, r.Version, stamp(r.Expires))
		switch left := r.Remains(o.o.Now()); {
		case r.Expired(o.o.Now()):
			line += "; EXPIRED: clients verify nothing"
		case left < warnBelow:
			line += fmt.Sprintf("; %d %% of its life is left: sign it again", left)
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 && o.Roles()[0].Threshold == 1 {
		lines = append(lines, "one key alone signs it: for trying out")
	}
	if now := o.site.Load(); now != nil && now.today.day > dayOf(o.o.Now()) {
		lines = append(lines, "the clock was set back: the version of a later day stays")
	}
	return lines
}

// ServeHTTP serves the repository at [Prefix]: 404 for what isn't there, which ends a
// client's way from root to root, and 503 for what has expired, which no client takes.
func (o *Online) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now, path := o.site.Load(), strings.TrimPrefix(r.URL.Path, Prefix)
	if now == nil {
		http.Error(w, "nothing is published here yet", http.StatusNotFound)
		return
	}
	cache := "public, max-age=31536000, immutable"
	if path == timestampPath {
		for _, role := range o.Roles() {
			if role.Expired(o.o.Now()) {
				http.Error(w, fmt.Sprintf("%s %d expired %s, and no client would take it: the operator has to sign it again", role.Name, role.Version, stamp(role.Expires)), http.StatusServiceUnavailable)
				return
			}
		}
		cache = "no-cache"
	}
	for _, files := range []*dayFiles{now.today, now.tomorrow, now.before} {
		if files == nil {
			continue
		}
		b, err := files.read(path)
		if err != nil {
			continue
		}
		h := w.Header()
		h.Set("Cache-Control", cache)
		h.Set("Content-Type", "application/octet-stream")
		if strings.HasSuffix(path, ".json") {
			h.Set("Content-Type", "application/json")
		}
		if path == timestampPath {
			h.Set("ETag", fmt.Sprintf(`"%d"`, now.today.version))
		}
		if strings.Contains(r.Header.Get("Range"), ",") { // many ranges answer a multiple of the file; RFC 9110 §14.2: they may be passed over
			r = r.Clone(r.Context())
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return
	}
	http.Error(w, "no such file here", http.StatusNotFound)
}
