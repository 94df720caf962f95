// Package ca issues code-signing certificates: it builds the profile from a
// verified principal and a proven key, lints it, records the intent, has a
// precertificate logged, and signs and checks the certificate. [Issuer.Issue]
// is the whole of it, read from top to bottom.
package ca

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Log records a precertificate and answers with at least one SCT, all of them
// verified under the logs' keys. ctlog.Policy is one. Its errors are classified
// (*fault.Error) or the context's; it ends when ctx ends.
type Log interface {
	Submit(ctx context.Context, chain ctlog.Chain) ([]ctlog.SCT, error)
	// Accepts is nil when everybody who may be asked by Submit takes the chain. Its
	// error wraps ctlog.ErrRefused where somebody refuses it, and doesn't where
	// somebody couldn't be asked.
	Accepts(ctx context.Context, chain ctlog.Chain) error
}

// Options are what an Issuer works with.
type Options struct {
	// Authorities are what signs and what clients are to trust. The Issuer owns
	// them from then on.
	Authorities *authority.Set
	// Log is nil only together with AcceptUnlogged.
	Log Log
	// AcceptUnlogged says that the operator wrote `mode: none` and
	// `accept_unlogged: true`: certificates carry no SCT and no log knows them.
	AcceptUnlogged bool
	// Auditor is required: no record, no signature.
	Auditor audit.Recorder
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger is for the operator; nil discards.
	Logger *slog.Logger
	// Metrics takes the package's metrics; nil leaves them unregistered.
	Metrics prometheus.Registerer
}

// Issuer issues certificates. It is safe for concurrent use. Its authorities are
// those in force; their Run and WatchExpiry are for the caller to run.
type Issuer struct {
	*authority.InForce

	life   authority.Life // of a leaf whose issuer chose none
	log    Log
	trail  audit.Trail
	now    func() time.Time
	random io.Reader // of serial numbers
	logger *slog.Logger
	stages [stages]prometheus.Observer
}

// New makes an Issuer. Without a log, it wants AcceptUnlogged; without an
// authority or an auditor there is none.
func New(c Config, o Options) (*Issuer, error) {
	var f setting.Faults
	c.Check("ca", &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	switch {
	case o.Authorities == nil || o.Authorities.Active == nil:
		return nil, errors.New("ca: no authority")
	case o.Auditor == nil:
		return nil, errors.New("ca: no auditor: nothing is signed without a record")
	case o.Log == nil && !o.AcceptUnlogged:
		return nil, errors.New("ca: no log: certificates that no log knows need `ctlog: {mode: none, accept_unlogged: true}`")
	case o.Log != nil && o.AcceptUnlogged:
		return nil, errors.New("ca: a log and accept_unlogged contradict each other: remove one")
	}
	i := &Issuer{life: authority.Life{Lifetime: c.Lifetime, Backdate: c.Backdate}, log: o.Log, now: o.Now, random: rand.Reader}
	i.logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if i.now == nil {
		i.now = time.Now
	}
	i.trail = audit.Trail{Recorder: o.Auditor, Now: i.now, Logger: i.logger}
	var err error
	if i.stages, err = newStages(o.Metrics); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	in := authority.Options{Set: o.Authorities, Life: i.life, Trail: i.trail, Metrics: o.Metrics}
	if o.Log != nil {
		in.Probe = i.probe
	}
	if i.InForce, err = authority.NewInForce(in); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	return i, nil
}

// Certificate is an issued certificate, its chain, and what an answer needs.
// Callers must not write to its bytes: the chain's are shared.
type Certificate struct {
	Leaf   []byte   // DER
	Chain  [][]byte // DER: the issuing certificate, …, the root
	SCTs   []ctlog.SCT
	Serial *big.Int
	// NotBefore and NotAfter bound the validity, both included, in whole seconds.
	NotBefore, NotAfter time.Time

	chainPEM   []string
	leafHashes [][32]byte // of the entry in the log of each SCT
}

// PEM is the leaf and its chain in PEM: leaf, issuing certificate, …, root.
// Each ends in a new line.
func (c *Certificate) PEM() []string {
	return append([]string{chain.Encode(c.Leaf)}, c.chainPEM...)
}

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
	f.When(lifetime > 0 && c.Backdate > lifetime/2, path, "%v leaves less than half of %s, %v, to sign in: make it shorter", c.Backdate, of, lifetime)
}
