// Package follow reads a log from its first entry to its last and on, as anybody can,
// through the static-ct API (c2sp.org/static-ct-api) or that of RFC 6962, and hands every
// entry to whoever keeps them. It believes nothing but the log's key: each entry's hash is
// folded into the tree's root (RFC 6962 §2.1), and each root is shown to be a beginning
// of the tree that the log signed last. What contradicts what the log signed is kept as
// evidence, and nothing beyond it is handed on.
package follow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// What Options that say nothing mean, and the bound of one look: a log that is far ahead
// is followed in several.
const (
	defaultInterval = 10 * time.Second
	passTimeout     = time.Minute
)

// Entry is one entry as the log's tree commits to it.
type Entry struct {
	Index     uint64
	Timestamp time.Time // of the SCT
	Precert   bool
	// Certificate is the certificate's DER, or the TBSCertificate of a precertificate's
	// final certificate, without its SCTs (RFC 6962 §3.2).
	Certificate []byte
}

// Position is how far a log was followed.
type Position struct {
	Size       uint64   // entries
	Head       uint64   // the log's entries, as it signed last; not kept
	Hashes     [][]byte // the fewest subtrees that make up the tree over them
	Checkpoint []byte   // the last that was verified
}

// ErrMoved means that the position in the Keeper isn't the one that was read last:
// another process follows the log for the same Keeper.
var ErrMoved = errors.New("another process has followed the log meanwhile")

// Keeper keeps what was followed. Its errors stop a look, and nothing is lost.
type Keeper interface {
	// Position is where the following of a log goes on; zero for one that is new.
	Position(ctx context.Context, log ctlog.Description) (Position, error)
	// Keep stores entries, which begin at from, and the position after them: both or
	// neither. ErrMoved where the position isn't from any more.
	Keep(ctx context.Context, log ctlog.Description, from uint64, entries []Entry, after Position) error
}

// Options are what a Follower works with. Keeper and Evidence are required.
type Options struct {
	Keeper   Keeper
	Evidence string                // the folder for what contradicts a log
	Interval time.Duration         // between two looks; zero: ten seconds
	Logger   *slog.Logger          // nil: nothing is logged
	Metrics  prometheus.Registerer // nil: nothing is registered
	Now      func() time.Time      // nil: time.Now
}

// Follower follows logs. Run does the work.
type Follower struct {
	o       Options
	metrics *metrics
	mu      sync.Mutex // guards logs, and each one's status
	logs    map[[32]byte]*source
}

// Status is how the following of one log stands.
type Status struct {
	URL      string
	Followed uint64    // entries
	Size     uint64    // of the log, at the last look that could tell
	Looked   time.Time // when all was well the last time; zero: not yet
	Err      error     // why the last look ended early; nil: it didn't
}

// New makes a Follower of logs. It reads nothing yet.
func New(logs []remote.Log, o Options) (*Follower, error) {
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	o.Interval = cmp.Or(o.Interval, defaultInterval)
	if o.Now == nil {
		o.Now = time.Now
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("follow: %w", err)
	}
	f := &Follower{o: o, metrics: m}
	commit, err := f.Prepare(logs)
	if err == nil {
		commit()
	}
	return f, err
}

// Prepare checks logs, and returns what has them followed in place of those before.
func (f *Follower) Prepare(logs []remote.Log) (commit func(), err error) {
	next := make(map[[32]byte]*source, len(logs))
	for _, l := range logs {
		r, err := remote.New(l)
		if err != nil {
			return nil, fmt.Errorf("follow: the log %s: %w", l.Description.URL, err)
		}
		next[l.Description.ID] = &source{Reader: r, status: Status{URL: l.Description.URL}}
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, l := range f.logs {
			if next[id] != nil {
				next[id].status = l.status
			} else {
				f.metrics.forget(l.status.URL)
			}
		}
		f.logs = next
	}, nil
}

// Run follows until ctx ends. It returns nil.
func (f *Follower) Run(ctx context.Context) error {
	for {
		_ = f.Look(ctx) // which has logged it
		if wait.For(ctx, f.o.Interval) != nil {
			return nil //nolint:nilerr // it is told to end
		}
	}
}

// Look looks at every log once, at all of them together.
func (f *Follower) Look(ctx context.Context) error {
	pass, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	f.mu.Lock()
	logs := slices.Collect(maps.Values(f.logs))
	f.mu.Unlock()
	errs := make([]error, len(logs))
	var looking sync.WaitGroup
	for i, l := range logs {
		looking.Go(func() {
			before := f.statusOf(l).Followed
			errs[i] = f.look(pass, l)
			switch at := f.statusOf(l); {
			case ctx.Err() != nil || errors.Is(errs[i], ErrMoved): // the other one reports
			case errs[i] != nil && pass.Err() != nil && at.Followed > before: // there is a long way to go
				f.metrics.show(Status{URL: at.URL, Followed: at.Followed, Size: at.Size}) // its last error was counted then
			default:
				f.report(ctx, l, errs[i])
			}
		})
	}
	looking.Wait()
	return errors.Join(errs...)
}

// report keeps how a look ended, and logs it where that is news.
func (f *Follower) report(ctx context.Context, l *source, err error) {
	f.mu.Lock()
	before := l.status.Err
	if l.status.Err = err; err == nil {
		l.status.Looked = f.o.Now()
	}
	at := l.status
	f.mu.Unlock()
	f.metrics.show(at)
	if err == nil || before != nil && before.Error() == err.Error() {
		return
	}
	attrs := []slog.Attr{slog.String("log", at.URL), slog.Uint64("followed", at.Followed), slog.Any("error", err)}
	if c := (*Contradiction)(nil); errors.As(err, &c) {
		f.o.Logger.LogAttrs(ctx, slog.LevelError, "the log contradicts what it signed: it is followed no further than it was verified, and the evidence is kept",
			append(attrs, slog.String("evidence", f.o.Evidence))...)
		return
	}
	f.o.Logger.LogAttrs(ctx, slog.LevelWarn, "the log can't be followed now", attrs...)
}

// at notes how far a log is followed, and how large it is.
func (f *Follower) at(l *source, followed, size uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.status.Followed, l.status.Size = followed, max(size, l.status.Size)
}

func (f *Follower) statusOf(l *source) Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.status
}

// Status says how each log stands, by URL.
func (f *Follower) Status() []Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Status, 0, len(f.logs))
	for _, l := range f.logs {
		all = append(all, l.status)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.URL, b.URL) })
	return all
}
