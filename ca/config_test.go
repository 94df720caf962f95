package ca

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestConfigCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"good", func(*Config) {}, nil},
		{"bounds", func(c *Config) { c.Lifetime = time.Hour }, nil},
		{"too short", func(c *Config) { c.Lifetime = time.Second }, []string{"ca.lifetime: 1s is out of bounds: from 1m0s to 1h0m0s"}},
		{"too long", func(c *Config) { c.Lifetime = time.Hour + 1 }, []string{"out of bounds"}},
		{"fraction", func(c *Config) { c.Lifetime += time.Millisecond }, []string{"isn't in whole seconds"}},
		{"all at once", func(c *Config) {
			*c = Config{Section: authority.Section{Authority: authority.Config{Passphrase: setting.Secret{Env: "A", File: "b"}}}}
		}, []string{"ca.authority.chain: required", "ca.authority.key: required", "ca.authority.passphrase: names both", "ca.lifetime"}},
	} {
		c := DefaultConfig()
		c.Authority = authority.Config{Chain: "chain.pem", Key: "file:key.pem"}
		tt.change(&c)
		var f setting.Faults
		c.Check("ca", &f)
		var got []string
		var faults *setting.FaultError
		if errors.As(f.Err(), &faults) {
			got = faults.Faults
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: faults %q; want %q", tt.name, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tt.want[i]) {
				t.Errorf("%s: fault %q; want %q", tt.name, got[i], tt.want[i])
			}
		}
	}
}
