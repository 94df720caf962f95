package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// reloadInterval is how often the files are looked at. A change is in force
// after two looks; what Kubernetes mounts takes up to a minute to get there anyway.
const reloadInterval = time.Second

// source is where a running service gets a new configuration from.
type source struct {
	file   string
	load   func() (*config.Config, error)
	hangup <-chan os.Signal // asks for a reload at once; nil never does
	ticks  <-chan time.Time // when to look at the files; nil is every reloadInterval
}

// What became of a reload: the label of mayfly_config_reloads_total.
const (
	reloadApplied = "applied"
	reloadRefused = "refused"
)

// reloader puts a configuration that changed in force while a service runs: all
// of it or, when it has any fault, nothing.
type reloader struct {
	source
	service *service
	watcher watcher
	reloads *prometheus.CounterVec
	good    prometheus.Gauge

	applying sync.Mutex // held by whoever changes what is in force

	mu      sync.Mutex
	config  *config.Config // in force
	since   time.Time      // when it was put in force
	refused time.Time      // when what came after it was refused; zero when it wasn't
	err     error          // why
}

// newReloader makes the reloader of s, whose configuration was read from the source.
func newReloader(s *service, from source) (*reloader, error) {
	r := &reloader{
		source: from, service: s, config: s.config, since: s.now(),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_config_reloads_total", Help: "Configurations read while the service runs, by what became of them (applied, refused).",
		}, []string{"outcome"}),
		good: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_config_last_reload_success", Help: "0 when the configuration on disk was refused and an older one is in force, else 1.",
		}),
	}
	r.good.Set(1)
	r.reloads.WithLabelValues(reloadApplied)
	r.reloads.WithLabelValues(reloadRefused)
	r.watcher.watch(r.files(s.config))
	if s.registry == nil {
		return r, nil
	}
	return r, errors.Join(s.registry.Register(r.reloads), s.registry.Register(r.good))
}

// files are what a change of which is a reason to reload: the configuration
// itself and what it names.
func (r *reloader) files(c *config.Config) []string { return append(c.Files(), r.file) }

// run reloads when files change, or at a hangup, until ctx ends.
func (r *reloader) run(ctx context.Context) error {
	if r.load == nil {
		return nil
	}
	ticks := r.ticks
	if ticks == nil {
		ticker := time.NewTicker(reloadInterval)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hangup:
			r.reload(ctx, "SIGHUP")
		case <-ticks:
			if r.watcher.changed() {
				r.reload(ctx, "file")
			}
		}
	}
}

// reload reads the configuration and puts it in force if nothing is wrong with it.
func (r *reloader) reload(ctx context.Context, cause string) {
	// Files are looked at before they are read: what changes from here on is a change.
	r.watcher.watch(r.files(r.config))
	next, err := r.load()
	r.applying.Lock()
	defer r.applying.Unlock()
	if err == nil {
		r.watcher.also(next.Files())
		err = r.apply(ctx, next)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	logger, now := r.service.logger, r.service.now()
	if err != nil {
		r.refused, r.err = now, err
		r.reloads.WithLabelValues(reloadRefused).Inc()
		r.good.Set(0)
		logger.LogAttrs(ctx, slog.LevelError, "the new configuration can't be used; the old one stays in force",
			slog.String("cause", cause), slog.String("file", r.file), slog.Any("faults", faultsOf(err)))
		return
	}
	r.config, r.since = next, now
	r.refused, r.err = time.Time{}, nil
	r.reloads.WithLabelValues(reloadApplied).Inc()
	r.good.Set(1)
	logger.LogAttrs(ctx, slog.LevelInfo, "the configuration was read again and is in force",
		slog.String("cause", cause), slog.String("file", r.file), slog.Int("issuers", len(next.Issuers)))
}

// apply makes all that next asks for and, when nothing is wrong with any of it,
// puts it in force. The error is a *setting.FaultError.
func (r *reloader) apply(ctx context.Context, next *config.Config) (err error) {
	s := r.service
	var f setting.Faults
	r.config.CheckReload(next, s.now(), &f)
	verifier, err := s.verifier.Prepare(next.Issuers, identity.Options{Now: s.now, Logger: s.logger, Deny: next.Deny})
	if err != nil {
		addFaults(&f, "issuers", err)
	}
	authorities := s.authorities
	if succession, fault := s.nextAuthorities(ctx, next); fault != nil {
		addFaults(&f, "ca", fault)
	} else {
		authorities = succession
		defer func() {
			if err != nil {
				s.discard(authorities)
			}
		}()
	}
	var own ownLogs
	if f.Len() == 0 { // nothing is opened for a configuration that is refused anyway
		if own, err = s.openOwn(ctx, next, nil, s.own); err != nil {
			addFaults(&f, "ctlog", err)
		}
	}
	documents, err := s.renderDocuments(next, s.inForce(authorities), own)
	if err != nil {
		f.Add("issuers", "%v", err)
	}
	change, err := s.server.Prepare(server.Change{
		Config: next.Server, Documents: server.Documents(documents), Mounts: own.mounts, Posts: own.posts,
	})
	if err != nil {
		addFaults(&f, "server", err)
	}
	if err := f.Err(); err != nil {
		return errors.Join(err, closeAll(ctx, own.fresh))
	}
	s.verifier.Follow(verifier)
	change()                                // clients are told of an authority before it signs
	if err := s.use(ctx, own); err != nil { // all that could be checked before was
		s.logger.ErrorContext(ctx, "putting the logs in force", slog.Any("error", err))
	}
	s.useAuthorities(ctx, authorities)
	return nil
}

// inForce is the configuration in force.
func (r *reloader) inForce() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.config
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

// check fails while a configuration on disk was refused.
func (r *reloader) check(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// detail is what anybody may know of it.
func (r *reloader) detail() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := []string{"in force since " + r.since.UTC().Format(time.RFC3339)}
	if r.err != nil {
		lines = append(lines, fmt.Sprintf("what came after it was refused at %s; faults: %d, which the log lists",
			r.refused.UTC().Format(time.RFC3339), len(faultsOf(r.err))))
	}
	return lines
}
