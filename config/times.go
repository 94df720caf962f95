package config

import (
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

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
