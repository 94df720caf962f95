package replay

import (
	"errors"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	if c := DefaultConfig(); c.Enabled() || !c.Redis.TLS {
		t.Errorf("default: %+v", c)
	}
	password := setting.Secret{Env: "PASSWORD"}
	for name, c := range map[string]struct {
		change func(*Redis)
		faults []string // paths, in order
	}{
		"nothing":                  {func(*Redis) {}, nil},
		"host and port":            {func(r *Redis) { r.Address = "redis.internal:6379" }, nil},
		"IPv6":                     {func(r *Redis) { r.Address = "[::1]:6379" }, nil},
		"socket":                   {func(r *Redis) { r.Address = "/run/redis.sock" }, nil},
		"all":                      {func(r *Redis) { r.Address, r.Username, r.Password, r.CAFile = "a:1", "u", password, "ca.pem" }, nil},
		"no port":                  {func(r *Redis) { r.Address = "redis" }, []string{"address"}},
		"port 0":                   {func(r *Redis) { r.Address = "redis:0" }, []string{"address"}},
		"no host":                  {func(r *Redis) { r.Address = ":6379" }, []string{"address"}},
		"URL":                      {func(r *Redis) { r.Address = "redis://a:6379" }, []string{"address"}},
		"relative socket":          {func(r *Redis) { r.Address = "run/redis.sock" }, []string{"address"}},
		"password without address": {func(r *Redis) { r.Password = password }, []string{"address"}},
		"user without password":    {func(r *Redis) { r.Address, r.Username = "a:1", "u" }, []string{"password"}},
		"CA without TLS":           {func(r *Redis) { r.Address, r.TLS, r.CAFile = "a:1", false, "ca.pem" }, []string{"ca_file"}},
		"CA of a socket":           {func(r *Redis) { r.Address, r.CAFile = "/s", "ca.pem" }, []string{"ca_file"}},
		"no prefix":                {func(r *Redis) { r.KeyPrefix = "" }, []string{"key_prefix"}},
		"pattern as prefix":        {func(r *Redis) { r.KeyPrefix = "a*" }, []string{"key_prefix"}},
		"two passwords": {func(r *Redis) { r.Address, r.Password = "a:1", setting.Secret{Env: "A", File: "b"} },
			[]string{"password"}},
	} {
		config := DefaultConfig()
		c.change(&config.Redis)
		var f setting.Faults
		config.Check("replay", &f)
		var faults *setting.FaultError
		var got []string
		if errors.As(f.Err(), &faults) {
			got = faults.Faults
		}
		if len(got) != len(c.faults) {
			t.Errorf("%s: got %q, want %q", name, got, c.faults)
			continue
		}
		for i, want := range c.faults {
			if !strings.HasPrefix(got[i], "replay.redis."+want+": ") {
				t.Errorf("%s: got %q, want %q", name, got[i], want)
			}
		}
	}
}
