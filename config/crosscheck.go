package config

import (
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server/page"
)

// crossCheck adds the faults that no section can see alone.
func (c *Config) crossCheck(f *setting.Faults) {
	c.checkTimes(f)
	f.When(c.Alerts.Enabled() && !c.Store.Enabled(), "alerts", "needs store: what isn't sent yet is kept there, and certificates come from its index")
	if l := c.Page.Login; c.Page.Access == page.Login && !slices.ContainsFunc(c.Issuers, func(i identity.IssuerConfig) bool {
		return i.URL == l.Issuer && slices.Contains(i.Audiences, l.ClientID)
	}) {
		f.Add("page.login", "no entry of issuers has its issuer as url and its client_id among audiences, so nobody's login would be taken; add one, with allow: \"false\" where it isn't for certificates")
	}
	keys := []setting.KeyRef{c.CA.Authority.Key}
	for _, a := range c.CA.All() {
		keys = append(keys, a.Key)
	}
	f.When(c.Timestamp.Key != "" && slices.Contains(keys, c.Timestamp.Key), "timestamp.key", "is an authority's key too; a timestamp authority has a key of its own")
	if c.CTLog.Mode != ctlog.ModeEmbedded {
		return
	}
	keys = append(keys, c.Timestamp.Key)
	if state := c.CTLog.StateFile; state != "" && (state == c.CA.StateFile || state == c.Audit.Path) {
		f.Add("ctlog.state_file", "is ca.state_file or audit.path too; each needs a file of its own")
	}
	for i, log := range c.CTLog.Own() {
		at := c.CTLog.OwnPath("ctlog", i)
		f.When(log.Key != "" && slices.Contains(keys, log.Key), setting.Join(at, "key"), "is an authority's key too; a log has a key of its own")
		f.When(c.Audit.Path.Inside(log.Directory), "audit.path", "is inside the log's directory, which the log alone may write")
		f.When(c.CTLog.StateFile.Inside(log.Directory), "ctlog.state_file", "is inside the log's directory, which the log alone may write")
		f.When(log.MarkFile != "" && log.MarkFile == c.Audit.Path, "audit.path", "is the log's mark_file too; each needs a file of its own")
	}
}

// checkTimes adds the faults of times in different sections that can't fit each other.
func (c *Config) checkTimes(f *setting.Faults) {
	if logs := c.CTLog; logs.Mode != ctlog.ModeNone {
		if logs.Timeout >= c.Server.RequestTimeout {
			f.Add("ctlog.timeout", "%v leaves no time of server.request_timeout, %v, for the certificate itself; make it shorter",
				logs.Timeout, c.Server.RequestTimeout)
		}
		if len(logs.Logs) > 1 && logs.Stagger > 0 && logs.Timeout > 0 && logs.Stagger >= logs.Timeout {
			f.Add("ctlog.stagger", "%v is no shorter than ctlog.timeout, %v: a second log would never be asked; make it shorter", logs.Stagger, logs.Timeout)
		}
	}
	const backdate = "ca.backdate"
	for i, issuer := range c.Issuers {
		at := setting.Index("issuers", i)
		c.CA.CheckBackdate(backdate, setting.Join(at, "lifetime"), issuer.Lifetime, f)
		c.CA.CheckBackdate(backdate, setting.Join(at, "max_lifetime"), issuer.MaxLifetime, f)
		for j, p := range issuer.Profiles {
			c.CA.CheckBackdate(backdate, setting.Join(setting.Index(setting.Join(at, "profiles"), j), "lifetime"), p.Lifetime, f)
		}
	}
}
