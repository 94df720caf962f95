package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestCheckReload(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Config)
		faults []string // paths
	}{
		"nothing":  {func(*Config) {}, nil},
		"issuers":  {func(c *Config) { c.Issuers = []identity.IssuerConfig{{URL: "https://new.example"}} }, nil},
		"limits":   {func(c *Config) { c.Server.RateLimits.PerIssuer.Rate = 3; c.Server.Limits.Issuances = 3 }, nil},
		"proxies":  {func(c *Config) { c.Server.TrustedProxies = []string{"10.0.0.0/8"} }, nil},
		"new pair": {func(c *Config) { c.Server.TLS.CertFile, c.Server.TLS.KeyFile = "b", "b" }, nil},
		"no TLS":   {func(c *Config) { c.Server.TLS.CertFile, c.Server.TLS.KeyFile = "", "" }, []string{"server.tls"}},
		"the rest": {func(c *Config) {
			c.Server.HTTPAddress = "127.0.0.1:1"
			c.Server.Limits.Connections++
			c.CA.Authority.Key = "file:other"
			c.CTLog.Timeout = time.Second
			c.Audit.Path = "other"
			c.Logging.Level = "debug"
			c.Replay.Redis.Address = "redis:6379"
		}, []string{
			"audit.path", "ca.authority.key", "ctlog.timeout", "logging.level", "replay.redis.address",
			"server.http_address", "server.limits.connections",
		}},
	} {
		old, next := Default(), Default()
		for _, c := range []*Config{old, next} {
			c.Server.TLS.CertFile, c.Server.TLS.KeyFile = "a", "a"
		}
		c.change(next)
		var f setting.Faults
		old.CheckReload(next, time.Unix(0, 0), &f)
		var faults *setting.FaultError
		var got []string
		if errors.As(f.Err(), &faults) {
			for _, line := range faults.Faults {
				path, _, _ := strings.Cut(line, ":")
				got = append(got, path)
			}
			slices.Sort(got)
		}
		if !slices.Equal(got, c.faults) {
			t.Errorf("%s: faults at %q, want %q", name, got, c.faults)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Audit.Path = "audit"
	c.Server.TLS.CertFile, c.Server.TLS.KeyFile = "tls.crt", "tls.key"
	c.Issuers = []identity.IssuerConfig{{CAFile: "ca.pem", BearerTokenFile: "token"}, {JWKSFile: "keys.json", CAFile: "ca.pem"}}
	if got, want := c.Files(), []string{"ca.pem", "keys.json", "tls.crt", "tls.key"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a state file names is told as what the configuration itself does.
func TestPathsOfStates(t *testing.T) {
	t.Parallel()
	c := Default()
	c.CA.States = []authority.NamedConfig{{Name: "y2027", Config: authority.Config{Chain: "y2027.pem", Key: "file:y2027.key.pem"}}}
	c.CTLog.State = &ctlog.State{Logs: []ctlog.EmbeddedConfig{{Key: "file:log.key.pem"}}, Frozen: []ctlog.FrozenConfig{{KeyFile: "old.pub.pem"}}}
	told := map[string]any{}
	c.Paths(func(at string, what any) { told[at] = what })
	for at, want := range map[string]any{
		"ca.state_file.authorities[0].chain": setting.Path("y2027.pem"), "ca.state_file.authorities[0].key": setting.KeyRef("file:y2027.key.pem"),
		"ctlog.state_file.logs[0].key": setting.KeyRef("file:log.key.pem"), "ctlog.state_file.frozen[0].key_file": setting.Path("old.pub.pem"),
	} {
		if told[at] != want {
			t.Errorf("%s is %v, want %v", at, told[at], want)
		}
	}
}
