package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// logSet are the logs of this process in one state: those that are written, each
// in its time, and frozen ones.
type logSet struct {
	shards []*shard
	frozen []ctlog.Description
	served []remote.Log            // of the frozen ones those that are served here
	mounts map[string]http.Handler // reads, by path prefix
	posts  map[string]http.Handler // submissions from everyone, by path
}

// shard is a log that this process writes, with the configuration that it has in
// one state. about, Log, key and scrub go on from one state to the next.
type shard struct {
	*embedded.Log // nil where it is only looked at
	config        ctlog.EmbeddedConfig
	about         ctlog.Description
	key           kms.Signer
	scrub         *scrub
}

// Description is what clients are told of the log: with the end that its configuration
// has, before a commit sets the log's own.
func (s *shard) Description() ctlog.Description {
	d := s.about
	d.End = s.config.End
	return d
}

func (s *shard) prefix() string {
	u, err := url.Parse(s.about.URL)
	if err != nil {
		return "" // the configuration was checked
	}
	return strings.TrimSuffix(u.Path, "/")
}

// scrub checks a log now and then in the background. Service.changing guards it once
// the service runs.
type scrub struct {
	running sync.WaitGroup
	cancel  func() // nil before it began
}

// start checks the log until ctx ends or stop is called.
func (s *scrub) start(ctx context.Context, log *embedded.Log) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.running.Go(func() { log.Scrub(ctx) })
}

// stop ends it and waits for it.
func (s *scrub) stop() {
	if s.cancel != nil {
		s.cancel()
	}
	s.running.Wait()
}

// missingIn are the shards of l whose logs other doesn't have.
func (l *logSet) missingIn(other *logSet) []*shard {
	var missing []*shard
	for _, one := range l.shards {
		if !slices.ContainsFunc(other.shards, func(o *shard) bool { return o.Log == one.Log }) {
			missing = append(missing, one)
		}
	}
	return missing
}

// openLogSet opens our logs of the next state: those of before that it names too
// stay open, and nothing of them has changed yet. The first keys are open already, and
// taken from the list. On an error what it opened is closed again.
func (s *Service) openLogSet(ctx context.Context, next *state, keys []kms.Signer, before *logSet) (_ *logSet, err error) {
	l := &logSet{mounts: make(map[string]http.Handler), posts: make(map[string]http.Handler)}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeShards(ctx, l.missingIn(before)))
		}
	}()
	for i, c := range next.config.CTLog.Own() {
		same := func(one *shard) bool {
			return strings.TrimSuffix(one.config.URL, "/") == strings.TrimSuffix(c.URL, "/")
		}
		if n := slices.IndexFunc(before.shards, same); n >= 0 {
			one := *before.shards[n]
			one.config = c
			l.shards = append(l.shards, &one)
			continue
		}
		one, err := s.openShard(ctx, c, next.configured.Roots(), keys, i)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", next.config.CTLog.OwnPath("ctlog", i), err)
		}
		l.shards = append(l.shards, one)
	}
	if err := l.mount(); err != nil {
		return nil, err
	}
	return l, s.openFrozen(ctx, next, l)
}

// openShard opens the log that is i in the configuration's order. Its key may be
// open already.
func (s *Service) openShard(ctx context.Context, c ctlog.EmbeddedConfig, roots [][]byte, keys []kms.Signer, i int) (_ *shard, err error) {
	one := &shard{config: c, scrub: &scrub{}}
	if i < len(keys) {
		one.key, keys[i] = keys[i], nil
	} else if one.key, err = s.openKey(ctx, c.Key, c.Passphrase, kms.Access{}); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	one.Log, err = embedded.Open(ctx, c, embedded.Options{Signer: one.key, Roots: roots, Now: s.Now, Logger: s.Logger, Metrics: s.Registry, Reads: s.reads})
	if err != nil {
		kms.Close(one.key)
		return nil, err
	}
	one.about = one.Log.Description()
	return one, nil
}

// mount puts what the logs answer at the paths of their URLs; of a log that is only
// looked at, nothing.
func (l *logSet) mount() error {
	for _, one := range l.shards {
		prefix, reads := one.prefix(), http.NotFoundHandler()
		if one.Log != nil {
			reads = one.Handler()
		}
		if err := l.mountAt(prefix, reads); err != nil {
			return fmt.Errorf("%s: %w", one.config.URL, err)
		}
		if one.Log == nil {
			continue
		}
		for _, path := range one.Submissions() {
			l.posts[prefix+path] = l.mounts[prefix+"/"]
		}
	}
	return nil
}

func (l *logSet) mountAt(prefix string, reads http.Handler) error {
	if prefix+"/" == tuf.Prefix {
		return fmt.Errorf("the trust root is served at %s", tuf.Prefix)
	}
	if l.mounts[prefix+"/"] != nil {
		return fmt.Errorf("another log is served at %s", prefix)
	}
	l.mounts[prefix+"/"] = http.StripPrefix(prefix, reads)
	return nil
}

// openFrozen adds the frozen logs: their keys, and the checkpoints of those that
// are served here.
func (s *Service) openFrozen(ctx context.Context, next *state, l *logSet) error {
	known := make(map[[32]byte]bool)
	for _, one := range l.shards {
		if known[one.Description().ID] {
			return fmt.Errorf("%s: another log has the same key", one.config.URL)
		}
		known[one.Description().ID] = true
	}
	for _, log := range s.loaded.external {
		known[log.Description().ID] = true
	}
	for i, log := range next.config.CTLog.FrozenLogs() {
		at := next.config.CTLog.FrozenPath("ctlog", i)
		d, err := external.Describe(log)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if known[d.ID] {
			return fmt.Errorf("%s: another log has the same key", at)
		}
		known[d.ID] = true
		l.frozen = append(l.frozen, d)
		if log.Directory == "" {
			continue
		}
		archive, err := read.OpenArchive(d, read.Options{Dir: logdir.Dir(log.Directory), Roots: next.configured.Roots, Logger: s.Logger, Budget: s.reads})
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if err := l.mountAt(archive.Prefix(), archive.Handler()); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		l.served = append(l.served, monitoredHere(d, archive.Local()))
	}
	return nil
}

// prepareLogs opens the logs that next names and that aren't open yet.
func (s *Service) prepareLogs(ctx context.Context, next *state) (_ func(context.Context), rollback func(), err error) {
	before := s.state().logs
	opened, err := s.openLogSet(ctx, next, nil, before)
	if err != nil {
		return nil, nil, err
	}
	next.logs = opened
	return nil, func() {
		if err := closeShards(ctx, opened.missingIn(before)); err != nil {
			s.Logger.ErrorContext(ctx, "closing the logs of a refused configuration", slog.Any("error", err))
		}
	}, nil
}

// prepareSubmission has certificates submitted to next's logs in place of those in
// use. The logs that next doesn't have are closed: they answer what they have
// taken, and publish it.
func (s *Service) prepareSubmission(_ context.Context, next *state) (_ func(context.Context), _ func(), err error) {
	before := s.state().logs
	var commits []func()
	add := func(commit func(), problem error) { commits, err = append(commits, commit), errors.Join(err, problem) }
	if s.policy != nil {
		add(s.policy.Prepare(s.submittedTo(next)))
	}
	if s.promises != nil {
		add(s.promises.Prepare(s.monitored(next)))
	}
	if s.index != nil {
		add(s.follower.Prepare(s.monitored(next)))
	}
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) {
		for _, one := range next.logs.shards {
			one.SetEnd(one.config.End)
		}
		for _, one := range next.logs.missingIn(before) {
			one.scrub.start(ctx, one.Log)
		}
		for _, commit := range commits {
			commit()
		}
		if s.policy != nil {
			s.issuer.RecheckSoon(s.issuer.Authorities().Active) // a log that is new hasn't seen how precertificates are signed
		}
		if err := closeShards(ctx, before.missingIn(next.logs)); err != nil {
			s.Logger.ErrorContext(ctx, "closing the logs that have gone", slog.Any("error", err))
		}
	}, nil, nil
}

// submittedTo are the logs to submit to in their order: ours, then those of others.
func (s *Service) submittedTo(st *state) []ctlog.Log {
	var all []ctlog.Log
	for _, one := range st.logs.shards {
		all = append(all, s.holdBack(one, one.config.Forced, st.signed, st.config.CTLog.Propagation))
	}
	for _, l := range s.loaded.external {
		all = append(all, s.holdBack(l, false, st.signed, st.config.CTLog.Propagation))
	}
	return all
}

// monitored are the logs that have to keep promises. A frozen one is among them: a
// submission may have crossed its end, and a copy in its place may lack its last entries.
func (s *Service) monitored(st *state) []remote.Log {
	var logs []remote.Log
	for _, one := range st.logs.shards {
		logs = append(logs, monitoredHere(one.Description(), one.LocalReads()))
	}
	logs = append(logs, st.logs.served...)
	for i, l := range s.loaded.external {
		logs = append(logs, monitoredElsewhere(l, s.started.CTLog.Logs[i]))
	}
	return logs
}

// monitoredHere is a log of this process as it is read.
func monitoredHere(d ctlog.Description, reads http.Handler) remote.Log {
	return remote.Log{Description: d, URL: "http://embedded", Client: remote.Local(reads), MMD: embedded.MMD}
}

// monitoredElsewhere is an external log as it is read.
func monitoredElsewhere(l *external.Log, c ctlog.ExternalConfig) remote.Log {
	return remote.Log{Description: l.Description(), URL: cmp.Or(c.MonitoringURL, c.URL), Client: l.Reader(), MMD: c.MMD}
}

// logDescriptions are the logs for the trust root: those in use, those to come, and
// frozen ones. Where logBase is set our logs are served there, not at their own hosts.
func (s *Service) logDescriptions(own *logSet) []ctlog.Description {
	var all []ctlog.Description
	for _, one := range own.shards {
		d := one.Description()
		if u, err := url.Parse(d.URL); s.logBase != "" && err == nil {
			d.URL = s.logBase + u.Path
		}
		all = append(all, d)
	}
	for _, l := range s.loaded.external {
		all = append(all, l.Description())
	}
	return append(all, own.frozen...)
}
