package service

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/audit/sink"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

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
	loaded.inspectServer(c)
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
