package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// reloadInterval is how often the files are looked at. A change is in force
// after two looks; what Kubernetes mounts takes up to a minute to get there anyway.
const reloadInterval = time.Second

// Source is where a running service gets a new configuration from.
type Source struct {
	File   string
	Load   func() (*config.Config, error)
	Hangup <-chan os.Signal // asks for a reload at once; nil never does
	Watch  func(done bool)  // is told when a reload begins and when it is done; nil if nobody asks

	ticks <-chan time.Time // when to look at the files; nil is every reloadInterval. Tests set it.
}

// What became of a reload: the label of mayfly_config_reloads_total.
const (
	reloadApplied = "applied"
	reloadRefused = "refused"
)

// reloads is how a service takes configurations up while it runs.
type reloads struct {
	Source
	steps   []reloadStep
	watcher watcher                 // of the goroutine that Run starts
	refused atomic.Pointer[refusal] // nil while what was read last is in force
	total   *prometheus.CounterVec
	success prometheus.Gauge
}

// refusal is a configuration that wasn't put in force.
type refusal struct {
	at  time.Time
	err error
}

// reloadStep is how one component follows a configuration.
type reloadStep struct {
	settings string // whose faults these are, where the error doesn't know; empty: nobody's
	// onlyIfClean has the step skipped once another has found a fault: opening a log
	// locks and recovers it.
	onlyIfClean bool
	// prepare makes what next's configuration asks for and adds it to next, where
	// later steps read it. Nothing that is in force changes before commit, which can't
	// fail; what it closes may, and is logged. rollback closes what prepare opened.
	// Either may be nil. After an error nothing is open.
	prepare func(ctx context.Context, next *state) (commit func(context.Context), rollback func(), err error)
}

// reloadSteps are in the order in which they are prepared and committed, and in the
// opposite order of their rollback. Authorities and logs are loaded first and used
// last: clients are told of them, by documents and server, before anything is
// signed by the one or submitted to the other.
func (s *Service) reloadSteps() []reloadStep {
	return []reloadStep{
		{settings: "", prepare: s.prepareSettings},
		{settings: "issuers", prepare: s.prepareIdentity},
		{settings: "ca", prepare: s.prepareAuthorities},
		{settings: "timestamp", prepare: s.prepareTimestamps},
		{settings: "ctlog", prepare: s.prepareLogs, onlyIfClean: true},
		{settings: "alerts", prepare: s.prepareAlerts},
		{settings: "", prepare: s.prepareDocuments},
		{settings: "server", prepare: s.prepareServer},
		{settings: "tuf.directory", prepare: s.prepareTUF},
		{settings: "ctlog", prepare: s.prepareSubmission},
		{settings: "timestamp", prepare: s.prepareStamping},
		{settings: "ca", prepare: s.prepareSigning},
	}
}

// start watches the files of the source and of the first state.
func (r *reloads) start(s *Service, first *state, from Source) error {
	r.Source, r.steps = from, s.reloadSteps()
	r.total = metric.Counter("mayfly_config_reloads_total", "Configurations read while the service runs, by what became of them (applied, refused).", "outcome")
	r.success = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mayfly_config_last_reload_success", Help: "0 when the configuration on disk was refused and an older one is in force, else 1.",
	})
	r.success.Set(1)
	r.total.WithLabelValues(reloadApplied)
	r.total.WithLabelValues(reloadRefused)
	r.watcher.watch(r.files(first.config))
	return metric.Register(s.Registry, r.total, r.success)
}

// files are what a change of which is a reason to reload: the configuration
// itself and what it names.
func (r *reloads) files(c *config.Config) []string { return append(c.Files(), r.File) }

// watchConfiguration reloads when files change, or at a hangup, until ctx ends.
func (s *Service) watchConfiguration(ctx context.Context) error {
	if s.reloads.Load == nil {
		return nil
	}
	ticks := cmp.Or(s.reloads.ticks, time.Tick(reloadInterval))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.reloads.Hangup:
			s.reload(ctx, "SIGHUP")
		case <-ticks:
			if s.reloads.watcher.changed() {
				s.reload(ctx, "file")
			}
		}
	}
}

// reload reads the configuration and puts it in force if nothing is wrong with it.
func (s *Service) reload(ctx context.Context, cause string) {
	r := &s.reloads
	if r.Watch != nil {
		r.Watch(false)
		defer r.Watch(true)
	}
	// Files are looked at before they are read: what changes from here on is a change.
	r.watcher.watch(r.files(s.state().config))
	next, err := r.Load()
	if err == nil {
		r.watcher.also(next.Files())
		err = s.apply(ctx, next)
	}
	if err != nil {
		r.refused.Store(&refusal{s.Now(), err})
		r.total.WithLabelValues(reloadRefused).Inc()
		r.success.Set(0)
		s.Logger.LogAttrs(ctx, slog.LevelError, "the new configuration can't be used; the old one stays in force",
			slog.String("cause", cause), slog.String("file", r.File), slog.Any("faults", faultsOf(err)))
		return
	}
	r.refused.Store(nil)
	r.total.WithLabelValues(reloadApplied).Inc()
	r.success.Set(1)
	s.Logger.LogAttrs(ctx, slog.LevelInfo, "the configuration was read again and is in force",
		slog.String("cause", cause), slog.String("file", r.File), slog.Int("issuers", len(next.Issuers)))
	if err := s.audit.Record(ctx, audit.Event{Type: audit.Admin, Act: "configuration in force", By: cause, What: r.File}); err != nil {
		s.Logger.LogAttrs(ctx, slog.LevelError, "a new configuration is in force and isn't on record in the audit trail", slog.Any("error", err))
	}
}

// apply makes all that c asks for and, when nothing is wrong with any of it, puts
// it in force. The error is a *setting.FaultError with the faults of every step.
func (s *Service) apply(ctx context.Context, c *config.Config) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	next := *s.state()
	next.config = c
	var f setting.Faults
	var commits []func(context.Context)
	var rollbacks []func()
	for _, step := range s.reloads.steps {
		if step.onlyIfClean && f.Len() > 0 {
			continue
		}
		commit, rollback, err := step.prepare(ctx, &next)
		if err != nil {
			addFaults(&f, step.settings, err)
		}
		if commit != nil {
			commits = append(commits, commit)
		}
		if rollback != nil {
			rollbacks = append(rollbacks, rollback)
		}
	}
	if err := f.Err(); err != nil {
		for _, rollback := range slices.Backward(rollbacks) {
			rollback()
		}
		return err
	}
	for _, commit := range commits {
		commit(ctx)
	}
	next.since = s.Now()
	s.current.Store(&next)
	return nil
}

// prepareSettings refuses what only a restart can change.
func (s *Service) prepareSettings(_ context.Context, next *state) (func(context.Context), func(), error) {
	var f setting.Faults
	s.state().config.CheckReload(next.config, s.Now(), &f)
	return nil, nil, f.Err()
}

// prepareIdentity has tokens verified by next's issuers, and rights given by its rules.
func (s *Service) prepareIdentity(_ context.Context, next *state) (func(context.Context), func(), error) {
	commitIssuers, err := s.loaded.verifier.Prepare(next.config.Issuers, next.config.Deny)
	commitAccess, accessErr := s.loaded.access.Prepare(next.config.Access)
	if err := errors.Join(err, accessErr); err != nil {
		return nil, nil, err
	}
	return func(context.Context) {
		s.loaded.verifier.SetRequests(next.config.Server.Limits.Issuances)
		commitIssuers()
		commitAccess()
	}, nil, nil
}

// faultsOf is what is wrong, one entry a fault.
func faultsOf(err error) []string {
	var document *config.Error
	var named *setting.FaultError
	switch {
	case errors.As(err, &document):
		all := make([]string, len(document.Faults))
		for i, f := range document.Faults {
			all[i] = f.String()
		}
		return all
	case errors.As(err, &named):
		return named.Faults
	default:
		return []string{err.Error()}
	}
}

// snapshot is how files look at one moment, links followed, by name: nil where there is
// no such file, or it can't be reached. It tells one version of a file from the next,
// whether it was written in place, renamed over, or reached by a link that now leads
// elsewhere.
type snapshot map[string]os.FileInfo

func stat(files []string) snapshot {
	s := make(snapshot, len(files))
	for _, f := range files {
		s[f], _ = os.Stat(f)
	}
	return s
}

// same reports whether the files look the same in both. One that only one of them
// knows makes a difference too.
func (s snapshot) same(other snapshot) bool {
	return maps.EqualFunc(s, other, func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == nil && b == nil
		}
		return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
	})
}

// watcher notices that files have changed, by looking at them now and then.
type watcher struct {
	settled snapshot // when they were last taken up
	latest  snapshot // at the last look
}

// watch begins, or begins anew, with what the files look like now.
func (w *watcher) watch(files []string) {
	w.settled = stat(files)
	w.latest = maps.Clone(w.settled)
}

// also watches further files, and leaves those that are watched already.
func (w *watcher) also(files []string) {
	for f, v := range stat(files) {
		if _, known := w.settled[f]; !known {
			w.settled[f], w.latest[f] = v, v
		}
	}
}

// changed reports, once, that files differ from when they were taken up. It
// waits until two looks in a row see the same: whoever writes them may be in the
// middle of one, or between two that belong together.
func (w *watcher) changed() bool {
	now := stat(slices.Collect(maps.Keys(w.settled)))
	quiet := now.same(w.latest)
	w.latest = now
	if !quiet || now.same(w.settled) {
		return false
	}
	w.settled = maps.Clone(now)
	return true
}
