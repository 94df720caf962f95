package service

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// countedKey tells when it is closed.
type countedKey struct {
	kms.Signer
	closed func()
}

func (k *countedKey) Close() error { k.closed(); return nil }

// TestALogsKeyIsClosedOnceAfterItsLog: at the end of the service, when the log has gone
// from the configuration, and when it can't be opened.
func TestALogsKeyIsClosedOnceAfterItsLog(t *testing.T) {
	t.Parallel()
	var clock jumping
	at := time.Now().Add(time.Minute).UTC().Truncate(time.Second)
	r := &rig{issuer: startIssuer(t), dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}}
	c := r.configuration(t)
	old := c.CTLog.Embedded
	c.CTLog.Embedded.End = at
	c.CTLog.Shards = []ctlog.EmbeddedConfig{newShard(t, r.dir, "next", at)}
	var err error
	if r.Service, err = Open(t.Context(), c, Dependencies{Now: clock.now, Logger: r.logger()}, Overrides{}, Source{}); err != nil {
		t.Fatal(err)
	}
	closed := map[string]int{}
	for _, one := range r.state().logs.shards {
		one.key = &countedKey{one.key, func() {
			if closed[one.config.URL]++; one.Ready(t.Context()) == nil {
				t.Errorf("%s: its key is closed while it takes submissions", one.config.URL)
			}
		}}
	}
	expect := func(name string, first, second int) {
		t.Helper()
		if closed[old.URL] != first || closed[c.CTLog.Shards[0].URL] != second {
			t.Errorf("%s: closed %v", name, closed)
		}
	}
	clock.to(at.Add(time.Second))
	next := *c
	next.CTLog.Embedded = ctlog.EmbeddedConfig{}
	next.CTLog.Frozen = []ctlog.FrozenConfig{freeze(t, r.dir, old, at)}
	if err := r.apply(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	expect("the first is frozen", 1, 0)

	missing := c.CTLog.Shards[0]
	missing.Directory = "missing"
	keys := []kms.Signer{&countedKey{r.state().logs.shards[0].key, func() { closed["missing"]++ }}}
	if _, err := r.openShard(t.Context(), missing, nil, keys, 0); err == nil || closed["missing"] != 1 || keys[0] != nil {
		t.Errorf("a log that isn't there: %v, its key was closed %d times", err, closed["missing"])
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	expect("the service is closed", 1, 1)
}

// TestTheIssuingKeyIsClosedWithTheService: with one that ran, and with one that can't be opened.
func TestTheIssuingKeyIsClosedWithTheService(t *testing.T) {
	t.Parallel()
	var way *relay
	inVault := func(r *rig, c *config.Config) {
		s := kmstest.NewVault(t, issuingKey(t, r.dir))
		way = newRelay(t, s.URL)
		r.getenv, c.CA.Authority.Key, c.CA.Authority.Access = s.Options.Getenv, setting.KeyRef(s.Ref), s.Options.Access
		c.CA.Authority.Endpoint = way.url
	}
	r := newRig(t, inVault)
	if way.open.Load() == 0 {
		t.Error("the key isn't open while the service runs")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	poll(t, "the key is closed", func() bool { return way.open.Load() == 0 })

	for name, edit := range map[string]func(*config.Config){
		"a fault of another setting":  func(c *config.Config) { c.Issuers[0].Audiences = nil },
		"no room for the audit trail": func(c *config.Config) { c.Audit.Path = "missing/audit.jsonl" },
		"no free address":             func(c *config.Config) { c.Server.HTTPAddress = "192.0.2.1:1" },
	} {
		r := &rig{issuer: startIssuer(t), dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}}
		c := r.configuration(t)
		inVault(r, c)
		edit(c)
		if s, err := Open(t.Context(), c, Dependencies{Now: time.Now, getenv: r.getenv, Logger: r.logger()}, Overrides{}, Source{}); err == nil {
			t.Fatal("it started", s.Close(t.Context()))
		}
		if way.taken.Load() == 0 {
			t.Errorf("%s: no key was opened", name)
		}
		poll(t, name+": the key is closed", func() bool { return way.open.Load() == 0 })
	}
}
