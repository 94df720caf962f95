package ca

import (
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The bounds of a leaf's lifetime. Signing clients use a certificate once, at
// once, and there is no revocation to shorten what is too long.
const (
	MinLifetime     = time.Minute
	DefaultLifetime = 10 * time.Minute
	MaxLifetime     = authority.MaxLeafLifetime
)

// Config is the section `ca` of the configuration.
type Config struct {
	authority.Section `yaml:",inline"`
	// Lifetime of a certificate, both ends included: from 1m to 1h, 10m by
	// default, in whole seconds. Clients of the public Sigstore expect 10m.
	Lifetime time.Duration `yaml:"lifetime"`
}

// DefaultConfig is the configuration that a file is decoded over.
func DefaultConfig() Config {
	return Config{Lifetime: DefaultLifetime, Section: authority.Section{Propagation: authority.DefaultPropagation}}
}

// Check adds every fault of c. It reads no file: loading the authorities does that.
func (c *Config) Check(path string, f *setting.Faults) {
	c.Section.Check(path, f)
	if c.Lifetime < MinLifetime || c.Lifetime > MaxLifetime {
		f.Add(setting.Join(path, "lifetime"), "%v is out of bounds: from %v to %v", c.Lifetime, MinLifetime, MaxLifetime)
	} else if c.Lifetime%time.Second != 0 {
		f.Add(setting.Join(path, "lifetime"), "%v isn't in whole seconds, and certificates know nothing finer", c.Lifetime)
	}
}
