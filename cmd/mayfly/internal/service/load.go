package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/audit/sink"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/identity/replay"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// Dependencies are what every component works with.
type Dependencies struct {
	Now    func() time.Time
	Logger *slog.Logger
	// Registry takes the metrics; nil makes a new one.
	Registry *prometheus.Registry
	// Out is standard output, for the sink of the audit trail that writes there.
	Out io.Writer
	// DroppedLogLines is how many lines of the service's log were lost; nil where none can be.
	DroppedLogLines func() uint64
	// Build is what mayfly_build_info says of the program; without it, it says nothing.
	Build prometheus.Labels

	// start says that the service starts: it serves documents and logs while the key
	// that issues can't be reached.
	start bool
	// keyMetrics are in the registry, and count the calls of every key that is opened.
	keyMetrics *kms.Metrics

	// Tests set these.
	getenv func(string) string // for the keys' credentials; nil is os.Getenv
	wake   <-chan time.Time    // when ephemeral issuing certificates are looked at, beside their own times
}

// withRegistry is d with a registry, which has the metrics of all keys.
func (d Dependencies) withRegistry() Dependencies {
	if d.Registry == nil {
		d.Registry = prometheus.NewRegistry()
		d.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		if d.DroppedLogLines != nil {
			d.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "mayfly_log_lines_dropped_total",
				Help: "Lines of the service's own log that were lost, because whoever reads standard error is gone or too slow.",
			}, func() float64 { return float64(d.DroppedLogLines()) }))
		}
		if d.Build != nil {
			d.Registry.MustRegister(metric.Read("mayfly_build_info", "1, with what the running program was built from.", d.Build, func() float64 { return 1 }))
		}
	}
	if d.keyMetrics == nil {
		d.keyMetrics = kms.NewMetrics()
		d.Registry.MustRegister(d.keyMetrics.Collectors()...)
	}
	return d
}

// Components are what a configuration names, read and checked but neither locked,
// written nor connected: all that can be looked at while a service runs.
type Components struct {
	Authorities *authority.Set    // nil once a service's issuer has it
	Beside      trustroot.History // what the section trust names
	// History and Documents are what clients would be told; only of [Check].
	History   trustroot.History
	Documents trustroot.Documents
	// Remarks are what works as it is and should be otherwise, by its place in the configuration.
	Remarks    []string
	LogKeys    []kms.Signer         // of our logs, in the order of ctlog.Config.Own; nil once a log has it
	timestamps *timestamp.Authority // nil where there is none, and once it is in force
	verifier   *identity.Verifier
	access     *access.Access
	keys       *proof.Policy
	replay     *replay.Store // nil where a process remembers used tokens by itself
	external   []*external.Log
	tufKey     kms.Signer      // nil without a repository
	published  *tuf.Repository // nil while nothing is
	// revocationKey is nil where nothing can be revoked, and once a Revoker has it.
	revocationKey kms.Signer
	alerts        *notify.Loaded
}

// Load reads everything that c names and reports all faults at once, as a
// *setting.FaultError.
func Load(ctx context.Context, c *config.Config, d Dependencies) (*Components, error) {
	d = d.withRegistry()
	var loaded Components
	var f setting.Faults
	var err error
	if loaded.keys, err = proof.NewPolicy(); err != nil {
		return nil, err
	}
	o := d.authorityOptions(c, nil)
	o.Remark = func(r string) { loaded.Remarks = append(loaded.Remarks, r) }
	if loaded.Authorities, err = authority.LoadSet(ctx, c.CA.Section, o); err != nil {
		addFaults(&f, "ca", err)
	} else if err := loaded.Authorities.Active.CheckHistory(string(c.Audit.Path)); err != nil {
		addFaults(&f, "ca", err)
	}
	if loaded.timestamps, err = d.loadTimestamps(ctx, c, nil); err != nil {
		addFaults(&f, "timestamp", err)
	} else if r := loaded.timestamps.Remark(d.Now()); r != "" {
		loaded.remark("timestamp.chain", "%s", r)
	}
	of := identity.Options{Now: d.Now, Logger: d.Logger, Metrics: d.Registry, Deny: c.Deny, Requests: c.Server.Limits.Issuances}
	if c.Replay.Enabled() {
		if loaded.replay, err = replay.New(c.Replay, d.Now); err != nil {
			addFaults(&f, "replay.redis", err)
		} else {
			of.Replay = loaded.replay
		}
	}
	if loaded.verifier, err = identity.NewVerifier(c.Issuers, of); err != nil {
		addFaults(&f, "issuers", err)
	} else if loaded.access, err = access.New(c.Access, loaded.verifier); err != nil {
		addFaults(&f, "access", err)
	}
	loaded.loadLogs(ctx, c.CTLog, d, &f)
	loaded.Beside = c.Trust.Read("trust", &f)
	loaded.loadRevocation(ctx, c.Revocation, d, &f)
	loaded.alerts = notify.Load("alerts", c.Alerts, &f)
	loaded.loadTUF(ctx, c.TUF, c.CA.Propagation, d, &f)
	if t := c.Server.TLS; t.Enabled() {
		if _, err := server.ReadCertificate(string(t.CertFile), string(t.KeyFile)); err != nil {
			addFaults(&f, "server.tls", err)
		}
	}
	loaded.inspectServer(c)
	if err := f.Err(); err != nil {
		_ = loaded.close() // the faults say what matters
		return nil, err
	}
	return &loaded, nil
}

// close closes what Load opened, but for what has another owner since.
func (l *Components) close() error {
	if l.Authorities != nil {
		l.Authorities.Active.Close()
	}
	l.timestamps.Close()
	for _, key := range l.LogKeys {
		kms.Close(key)
	}
	for _, log := range l.external {
		log.Close()
	}
	kms.Close(l.tufKey)
	kms.Close(l.revocationKey)
	if l.replay != nil {
		return l.replay.Close()
	}
	return nil
}

// loadLogs opens the keys of our logs, and reads what others' logs are called and sign with.
func (l *Components) loadLogs(ctx context.Context, c ctlog.Config, d Dependencies, f *setting.Faults) {
	for i, log := range c.Own() {
		key, err := d.openKey(ctx, log.Key, log.Passphrase, kms.Access{})
		if err != nil {
			addFaults(f, setting.Join(c.OwnPath("ctlog", i), "key"), err)
		}
		l.LogKeys = append(l.LogKeys, key)
	}
	for i, log := range c.Logs {
		opened, err := external.New(log, external.Options{Now: d.Now, Logger: d.Logger, Metrics: d.Registry})
		if err != nil {
			addFaults(f, setting.Index("ctlog.logs", i), err)
			continue
		}
		l.external = append(l.external, opened)
	}
}

// addFaults adds err under path, or as it is when it knows its own paths.
func addFaults(f *setting.Faults, path string, err error) {
	var known *setting.FaultError
	if errors.As(err, &known) {
		f.AddAll(known)
		return
	}
	f.Add(path, "%v", err)
}

// authorityOptions are what c's authorities are loaded with, after those in force.
func (d Dependencies) authorityOptions(c *config.Config, before *authority.Set) authority.LoadOptions {
	o := authority.LoadOptions{Now: d.Now(), Lifetime: longestLifetime(c), Before: before, KMS: d.kmsOptions()}
	o.KMS.Later = d.start && before == nil
	return o
}

func (d Dependencies) kmsOptions() kms.Options {
	return kms.Options{Logger: d.Logger, Metrics: d.keyMetrics, Now: d.Now, Getenv: d.getenv}
}

// openKey opens a key that isn't an authority's.
func (d Dependencies) openKey(ctx context.Context, key setting.KeyRef, passphrase setting.Secret, access kms.Access) (kms.Signer, error) {
	o := d.kmsOptions()
	o.Passphrase, o.Access = passphrase, access
	return keystore.Open(ctx, string(key), o)
}

// longestLifetime is the longest that any issuer's policy may give a certificate.
func longestLifetime(c *config.Config) time.Duration {
	longest := c.CA.Lifetime
	for _, i := range c.Issuers {
		longest = max(longest, i.Lifetime)
		for _, p := range i.Profiles {
			longest = max(longest, p.Lifetime)
		}
	}
	return min(longest, ca.MaxLifetime)
}

// Check is Load, and a look at all that a start would lock and write: audit trail,
// logs, frozen logs and the documents for clients. It changes nothing and may run
// beside the service. What another process holds is a remark, since that is usually
// the service. The result has what clients would be told.
func Check(ctx context.Context, c *config.Config, d Dependencies) (*Components, error) {
	d = d.withRegistry()
	var f setting.Faults
	loaded, err := Load(ctx, c, d)
	if err != nil {
		addFaults(&f, "", err)
		loaded = &Components{}
	}
	if inUse, err := audit.Inspect(c.Audit); err != nil {
		addFaults(&f, "audit.path", err)
	} else if inUse {
		loaded.remark("audit.path", "%s is in use: a service runs with it, and this one wouldn't start beside it", c.Audit.Path)
	}
	if _, err := sink.New(c.Audit, sink.Options{Metrics: d.Registry}); err != nil {
		addFaults(&f, "", err)
	}
	if loaded.Authorities != nil {
		loaded.inspectLogs(ctx, c, d, Overrides{}, &f)
		loaded.inspectTUF()
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	return loaded, nil
}

func (l *Components) remark(path, format string, args ...any) {
	l.Remarks = append(l.Remarks, path+": "+fmt.Sprintf(format, args...))
}

// inspectLogs looks at our logs, frozen ones too, and at the documents that list them.
func (l *Components) inspectLogs(ctx context.Context, c *config.Config, d Dependencies, o Overrides, f *setting.Faults) {
	s := &Service{Dependencies: d, loaded: l, started: c, logBase: o.LogBase}
	set := &logSet{mounts: make(map[string]http.Handler), posts: make(map[string]http.Handler)}
	st := &state{config: c, since: d.Now(), configured: l.Authorities, authorities: l.Authorities, logs: set, beside: l.Beside, timestamps: l.timestamps}
	for i, log := range c.CTLog.Own() {
		at := c.CTLog.OwnPath("ctlog", i)
		about, inUse, err := embedded.Inspect(ctx, log, l.LogKeys[i].Public())
		if err != nil {
			addFaults(f, at, err)
			continue
		}
		if inUse {
			l.remark(at, "%s is in use: a service runs with it, and this one wouldn't start beside it", log.Directory)
		}
		set.shards = append(set.shards, &shard{config: log, about: about, scrub: &scrub{}})
	}
	err := set.mount()
	if err == nil {
		err = s.openFrozen(ctx, st, set)
	}
	if err != nil {
		addFaults(f, "ctlog", err)
		return
	}
	if l.History, l.Documents, err = s.render(st); err != nil {
		addFaults(f, "", err)
	}
	l.Remarks = append(l.Remarks, l.History.Remarks("trust.transparency_logs", d.Now())...)
}

// inspectServer remarks on what clients are told and how they are spoken to.
func (l *Components) inspectServer(c *config.Config) {
	for _, at := range []struct{ path, address string }{
		{"server.http_address", c.Server.HTTPAddress}, {"server.grpc_address", c.Server.GRPCAddress},
	} {
		host, _, err := net.SplitHostPort(at.address)
		if host == "unix" {
			if !slices.Contains(c.Server.TrustedProxies, "unix") {
				l.remark("server.trusted_proxies", "lacks `unix`: all clients of %s count as one network address; add it where the proxy in front sets X-Forwarded-For", at.address)
			}
			continue
		}
		if err != nil || loopback.Host(host) {
			continue
		}
		if !c.Server.TLS.Enabled() {
			l.remark(at.path, "%s speaks plain text beyond this machine: identity tokens can be read on the way, unless a proxy in front ends TLS; set server.tls", at.address)
		}
		if c.Server.PublicURL == "" {
			l.remark("server.public_url", "isn't set: clients are told to use http_address, %s, as it is written", c.Server.HTTPAddress)
		}
	}
}

// probeTimeout bounds all that Probe asks others.
const probeTimeout = time.Minute

// Probed is one thing that [Components.Probe] tried, and what came of it.
type Probed struct {
	Whose  string // the issuer's or log's URL; "replay" is the store of used tokens
	Name   string
	Detail string
	Err    error
}

// Probe tries what a service would ask others: discovery and keys of each exact
// issuer, whether the store of used tokens can be written, and of each log whether
// it can be read, signs with the configured key and takes the authority's
// certificates. It submits nothing, and tells each result as it comes.
func (l *Components) Probe(ctx context.Context, c *config.Config, tell func(Probed)) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, s := range l.verifier.Probe(ctx) {
		tell(Probed{s.Issuer, s.Name, s.Detail, s.Err})
	}
	if l.replay != nil {
		tell(Probed{"replay", "write", "", l.replay.Ready(ctx)})
	}
	for i, log := range l.external {
		url := log.Description().URL
		tell(Probed{url, "get-roots", "", log.CheckRoots(ctx, l.Authorities.Active.Chain)})
		head, err := remote.ReadHead(ctx, monitoredElsewhere(log, c.CTLog.Logs[i]))
		tell(Probed{url, "tree head", describeHead(head), err})
	}
	for i, log := range c.CTLog.Own() {
		head, err := read.Published(log, l.LogKeys[i].Public())
		tell(Probed{log.URL, "tree head", describeHead(remote.Head{Head: head, Static: true}), err})
	}
}

// describeHead puts what a log signed into words.
func describeHead(h remote.Head) string {
	api := "static-ct"
	if !h.Static {
		api = "RFC 6962"
	}
	return fmt.Sprintf("%s, %d entries, signed %s", api, h.Size, h.Signed().UTC().Format(time.RFC3339))
}
