package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/identity/replay"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// environment is what every part of a service works with.
type environment struct {
	now      func() time.Time
	logger   *slog.Logger
	registry prometheus.Registerer // nil leaves metrics unregistered
	getenv   func(string) string   // of the keys' credentials; nil is os.Getenv
	wake     <-chan time.Time      // when ephemeral issuing certificates are looked at, beside their own times; nil for never
}

// parts are what a configuration names, read and checked but neither locked,
// written nor connected: all that `mayfly check` can look at while a service runs.
type parts struct {
	authorities *ca.Authorities
	verifier    *identity.Succession
	keys        *proof.Policy
	replay      *replay.Store // nil where a process remembers used tokens by itself
	logKeys     []kms.Signer  // of our logs, in the order of ctlog.Config.Own
	external    []*external.Log
}

// loadParts reads everything that c names and reports all faults at once, as a
// *setting.FaultError.
func loadParts(ctx context.Context, c *config.Config, e environment) (*parts, error) {
	var p parts
	var f setting.Faults
	var err error
	if p.authorities, err = ca.LoadAuthorities(ctx, c.CA, e.loading(c, nil)); err != nil {
		addFaults(&f, "ca", err)
	}
	o := identity.Options{Now: e.now, Logger: e.logger, Metrics: e.registry, Deny: c.Deny}
	if c.Replay.Enabled() {
		if p.replay, err = replay.New(c.Replay, e.now); err != nil {
			addFaults(&f, "replay.redis", err)
		} else {
			o.Replay = p.replay
		}
	}
	if p.verifier, err = identity.NewSuccession(c.Issuers, o); err != nil {
		addFaults(&f, "issuers", err)
	}
	if p.keys, err = proof.NewPolicy(); err != nil {
		return nil, err
	}
	for i, log := range c.CTLog.Own() {
		key, err := openLogKey(ctx, log, e)
		if err != nil {
			addFaults(&f, setting.Join(c.CTLog.OwnPath("ctlog", i), "key"), err)
		}
		p.logKeys = append(p.logKeys, key)
	}
	for i, log := range c.CTLog.Logs {
		member, err := external.New(log, external.Options{Now: e.now, Logger: e.logger, Metrics: e.registry})
		if err != nil {
			addFaults(&f, setting.Index("ctlog.logs", i), err)
			continue
		}
		p.external = append(p.external, member)
	}
	if t := c.Server.TLS; t.Enabled() {
		if _, err := tls.LoadX509KeyPair(string(t.CertFile), string(t.KeyFile)); err != nil {
			addFaults(&f, "server.tls", err)
		}
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	return &p, nil
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

// loading is what c's authorities are loaded with, after those in force.
func (e environment) loading(c *config.Config, before *ca.Authorities) ca.LoadOptions {
	return ca.LoadOptions{
		Now: e.now(), Lifetime: longest(c), Before: before,
		KMS: kms.Options{Logger: e.logger, Metrics: e.registry, Now: e.now, Getenv: e.getenv},
	}
}

// longest is the longest lifetime that any issuer's policy may give a certificate.
func longest(c *config.Config) time.Duration {
	most := c.CA.Lifetime
	for _, i := range c.Issuers {
		most = max(most, i.Lifetime)
		for _, p := range i.Profiles {
			most = max(most, p.Lifetime)
		}
	}
	return min(most, ca.MaxLifetime)
}
