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
	// maxBackdate is longer than any clock should be off that a timestamp depends on.
	maxBackdate = time.Minute
)

// Config is the section `ca` of the configuration.
type Config struct {
	authority.Section `yaml:",inline"`
	// Lifetime of a certificate, both ends included: from 1m to 1h, 10m by
	// default, in whole seconds. Clients of the public Sigstore expect 10m.
	Lifetime time.Duration `yaml:"lifetime"`
	// Backdate is how long before its issuance a certificate begins: from 0s, the
	// default, to 1m, in whole seconds. It is counted into the lifetime, of which at
	// least half must be left. A signature whose timestamp lies before the
	// certificate's begin is never valid: with it, a timestamp authority's clock may
	// be so far behind.
	Backdate time.Duration `yaml:"backdate"`
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
	if at := setting.Join(path, "backdate"); c.Backdate < 0 || c.Backdate > maxBackdate || c.Backdate%time.Second != 0 {
		f.Add(at, "%v is out of bounds: from 0s to %v, in whole seconds", c.Backdate, maxBackdate)
	} else {
		c.CheckBackdate(at, setting.Join(path, "lifetime"), c.Lifetime, f)
	}
}

// CheckBackdate adds a fault when too little is left of a lifetime, the one at the
// path of, since the certificate begins so much earlier.
func (c *Config) CheckBackdate(path, of string, lifetime time.Duration, f *setting.Faults) {
	if lifetime > 0 && c.Backdate > lifetime/2 {
		f.Add(path, "%v leaves less than half of %s, %v, to sign in: make it shorter", c.Backdate, of, lifetime)
	}
}
