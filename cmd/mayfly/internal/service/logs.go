package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// shard is a log inside this process.
type shard struct {
	config ctlog.EmbeddedConfig
	log    *embedded.Log
	stop   func() // ends the patrol and waits for it; nil before there is one
}

// patrol checks the log now and then until ctx ends or the shard is closed.
func (s *shard) patrol(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.log.Patrol(ctx) // it returns nil, and tells in log and metrics what it finds
	}()
	s.stop = func() { cancel(); <-done }
}

// about is what the trust root says of the log, with the end that its configuration has.
func (s *shard) about() ctlog.Description {
	d := s.log.Description()
	d.End = s.config.End
	return d
}

func (s *shard) prefix() string { return strings.TrimSuffix(s.log.Prefix(), "/") }

// ownLogs are the logs of this process: those that are written, each in its time,
// and frozen ones. They are replaced whole when the configuration changes.
type ownLogs struct {
	shards []*shard
	fresh  []*shard // of them, those that weren't open before
	frozen []ctlog.Description
	served []inclusion.Log         // of the frozen ones those that are served here
	mounts map[string]http.Handler // reads, by path prefix
	posts  map[string]http.Handler // submissions from everyone, by path
}

// openLogKey opens the key of one of our logs.
func openLogKey(ctx context.Context, c ctlog.EmbeddedConfig, e environment) (kms.Signer, error) {
	return kms.Open(ctx, string(c.Key), kms.Options{Passphrase: c.Passphrase, Logger: e.logger, Metrics: e.registry, Now: e.now, Getenv: e.getenv})
}

// openOwn opens the logs that c names: those of before that c names too stay open,
// and nothing of them has changed yet. On an error what it opened is closed again.
func (s *service) openOwn(ctx context.Context, c *config.Config, keys []kms.Signer, before ownLogs) (o ownLogs, err error) {
	o = ownLogs{mounts: make(map[string]http.Handler), posts: make(map[string]http.Handler)}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(ctx, o.fresh))
			o = ownLogs{}
		}
	}()
	open := make(map[string]*shard)
	for _, one := range before.shards {
		open[strings.TrimSuffix(one.config.URL, "/")] = one
	}
	for i, log := range c.CTLog.Own() {
		one := &shard{config: log}
		o.shards = append(o.shards, one)
		if known := open[strings.TrimSuffix(log.URL, "/")]; known != nil {
			one.log, one.stop = known.log, known.stop
			continue
		}
		if one.log, err = s.openShard(ctx, log, keys, i); err != nil {
			return ownLogs{}, fmt.Errorf("%s: %w", c.CTLog.OwnPath("ctlog", i), err)
		}
		o.fresh = append(o.fresh, one)
	}
	if err := o.mount(); err != nil {
		return ownLogs{}, err
	}
	if err := s.openFrozen(ctx, c, &o); err != nil {
		return ownLogs{}, err
	}
	return o, nil
}

// openShard opens the log that is i in the configuration's order. Its key may be
// open already.
func (s *service) openShard(ctx context.Context, c ctlog.EmbeddedConfig, keys []kms.Signer, i int) (*embedded.Log, error) {
	if i >= len(keys) {
		key, err := openLogKey(ctx, c, s.environment)
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		keys = append(make([]kms.Signer, i), key)
	}
	return embedded.Open(ctx, c, embedded.Options{
		Signer: keys[i], Roots: s.authorities.Roots(), Now: s.now, Logger: s.logger, Metrics: s.registry,
	})
}

// mount puts reads and submissions of the logs at the paths of their URLs.
func (o *ownLogs) mount() error {
	for _, one := range o.shards {
		prefix := one.prefix()
		if o.mounts[prefix+"/"] != nil {
			return fmt.Errorf("%s: another log is served at %s", one.config.URL, prefix)
		}
		o.mounts[prefix+"/"] = http.StripPrefix(prefix, one.log.Handler())
		for _, path := range one.log.Submissions() {
			o.posts[prefix+path] = o.mounts[prefix+"/"]
		}
	}
	return nil
}

// openFrozen adds the frozen logs: their keys, and the checkpoints of those that
// are served here.
func (s *service) openFrozen(ctx context.Context, c *config.Config, o *ownLogs) error {
	seen := make(map[[32]byte]bool)
	for _, one := range o.shards {
		if seen[one.about().ID] {
			return fmt.Errorf("%s: another log has the same key", one.config.URL)
		}
		seen[one.about().ID] = true
	}
	for _, l := range s.external {
		seen[l.Description().ID] = true
	}
	for i, log := range c.CTLog.Frozen {
		at := setting.Index("ctlog.frozen", i)
		d, err := external.Describe(log)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if seen[d.ID] {
			return fmt.Errorf("%s: another log has the same key", at)
		}
		seen[d.ID] = true
		o.frozen = append(o.frozen, d)
		if log.Directory == "" {
			continue
		}
		archive, err := embedded.OpenArchive(ctx, string(log.Directory), d, embedded.Options{Roots: s.authorities.Roots(), Now: s.now, Logger: s.logger})
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if o.mounts[archive.Prefix()+"/"] != nil {
			return fmt.Errorf("%s: another log is served at %s", at, archive.Prefix())
		}
		o.mounts[archive.Prefix()+"/"] = http.StripPrefix(archive.Prefix(), archive.Handler())
		o.served = append(o.served, watchedHere(d, archive.Handler()))
	}
	return nil
}

// use puts next in the place of the logs in use. The logs that next doesn't have
// are closed: they answer what they have taken, and publish it.
func (s *service) use(ctx context.Context, next ownLogs) error {
	gone := make(map[*embedded.Log]*shard)
	for _, one := range s.own.shards {
		gone[one.log] = one
	}
	for _, one := range next.shards {
		one.log.SetEnd(one.config.End)
		delete(gone, one.log)
	}
	for _, one := range next.fresh {
		one.patrol(ctx)
	}
	next.fresh = nil
	s.own = next
	var errs []error
	if s.policy != nil {
		errs = append(errs, s.policy.Use(s.members()))
		s.issuer.AskLogs() // a log that is new hasn't seen how precertificates are signed
	}
	if s.promises != nil {
		errs = append(errs, s.promises.Follow(s.watched()))
	}
	for _, one := range gone {
		errs = append(errs, closeAll(ctx, []*shard{one}))
	}
	return errors.Join(errs...)
}

// closeAll closes logs. ctx gives values, not time.
func closeAll(ctx context.Context, shards []*shard) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var errs []error
	for _, one := range shards {
		if one.stop != nil {
			one.stop()
		}
		errs = append(errs, one.log.Close(ctx))
	}
	return errors.Join(errs...)
}

// members are the logs to submit to in their order: ours, then those of others.
func (s *service) members() []ctlog.Member {
	var all []ctlog.Member
	for _, one := range s.own.shards {
		all = append(all, one.log)
	}
	for _, l := range s.external {
		all = append(all, l)
	}
	return all
}

// watchedHere is a log of this process as it is read.
func watchedHere(d ctlog.Description, reads http.Handler) inclusion.Log {
	return inclusion.Log{About: d, URL: "http://embedded", Client: inclusion.Local(reads), MMD: embedded.MMD}
}

// watched are the logs that have to keep promises. A frozen one is among them: a
// submission may have crossed its end, and a copy in its place may lack its last entries.
func (s *service) watched() []inclusion.Log {
	var logs []inclusion.Log
	for _, one := range s.own.shards {
		logs = append(logs, watchedHere(one.about(), one.log.Handler()))
	}
	logs = append(logs, s.own.served...)
	for i, l := range s.external {
		logs = append(logs, watchedLog(l, s.config.CTLog.Logs[i]))
	}
	return logs
}

// descriptions are the logs for the trust root: those in use, those to come, and
// frozen ones. base, if any, is where our logs are served in place of their own hosts.
func (s *service) descriptions(own ownLogs, base string) []ctlog.Description {
	var all []ctlog.Description
	for _, one := range own.shards {
		d := one.about()
		if u, err := url.Parse(d.URL); base != "" && err == nil {
			d.URL = base + u.Path
		}
		all = append(all, d)
	}
	for _, l := range s.external {
		all = append(all, l.Description())
	}
	return append(all, own.frozen...)
}

// What is said of a log's end, and when.
const (
	endIsNear    = 30 * 24 * time.Hour // before it
	endIsToldFor = 24 * time.Hour      // once in so long
)

// nextLog fails when the end of the last log is near, and no other is named.
func (s *service) nextLog(context.Context) error {
	until := s.policy.CoveredUntil()
	if until.IsZero() || until.Sub(s.now()) > endIsNear {
		return nil
	}
	return fmt.Errorf("no log takes certificates from %s on; add the next one: mayfly log rotate, or ctlog.logs", until.UTC().Format(time.RFC3339))
}

// gaugeOfEnd tells when no log takes certificates any more. +Inf is never.
func (s *service) gaugeOfEnd() error {
	if s.policy == nil || s.registry == nil {
		return nil
	}
	return s.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mayfly_ctlog_covered_until_timestamp_seconds",
		Help: "From when on no transparency log takes certificates unless another is added, in seconds since 1970; +Inf is never.",
	}, func() float64 {
		until := s.policy.CoveredUntil()
		if until.IsZero() {
			return math.Inf(1)
		}
		return float64(until.Unix())
	}))
}

// tellOfEnd logs that the end of the last log is near, once a day.
func (s *service) tellOfEnd(ctx context.Context) error {
	if s.policy == nil {
		return nil
	}
	tick := time.NewTicker(endIsToldFor)
	defer tick.Stop()
	for {
		if err := s.nextLog(ctx); err != nil {
			s.logger.WarnContext(ctx, "the last log's time ends soon, and then nothing can be issued", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// eachShard says which log takes certificates when, for anybody to read.
func (s *service) eachShard() []string {
	now := s.now()
	var lines []string
	for _, d := range s.policy.Descriptions() {
		lines = append(lines, fmt.Sprintf("%s: %s%s", d.URL, standing(d, now), window(d)))
	}
	return lines
}

// standing is where a log is in its life.
func standing(d ctlog.Description, now time.Time) string {
	switch {
	case d.Holds(now):
		return "active"
	case now.Before(d.Start):
		return "next"
	default:
		return "ended"
	}
}

// window is a log's time in words that follow its state.
func window(d ctlog.Description) string {
	text := ""
	if !d.Start.IsZero() {
		text += ", from " + d.Start.UTC().Format(time.RFC3339)
	}
	if !d.End.IsZero() {
		text += ", until " + d.End.UTC().Format(time.RFC3339)
	}
	return text
}

// writePublicKey writes a log's key in PEM to a file that isn't there yet.
func writePublicKey(path string, spki []byte) error {
	return durable.WriteNew(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o644)
}
