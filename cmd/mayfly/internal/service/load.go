package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/identity/replay"
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

	// Tests set these.
	getenv func(string) string // for the keys' credentials; nil is os.Getenv
	wake   <-chan time.Time    // when ephemeral issuing certificates are looked at, beside their own times
}

// withRegistry is d with a registry.
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
	return authority.LoadOptions{Now: d.Now(), Lifetime: longestLifetime(c), Before: before, KMS: d.kmsOptions()}
}

func (d Dependencies) kmsOptions() kms.Options {
	return kms.Options{Logger: d.Logger, Metrics: d.Registry, Now: d.Now, Getenv: d.getenv}
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
