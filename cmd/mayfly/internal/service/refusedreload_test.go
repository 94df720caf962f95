package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// relay passes connections on to a service, and counts those that are open.
type relay struct {
	url         string
	taken, open atomic.Int64
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &relay{url: "http://" + l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.taken.Add(1)
			r.open.Add(1)
			go func() {
				defer r.open.Add(-1)
				defer c.Close()
				far, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
				if err != nil {
					return
				}
				var both sync.WaitGroup
				both.Go(func() { _, _ = io.Copy(c, far); _ = c.Close() })
				both.Go(func() { _, _ = io.Copy(far, c); _ = far.Close() })
				both.Wait()
			}()
		}
	}()
	return r
}

// newVaultIssuer is a CA with a root of its own, whose key is in a Vault behind
// the relay that it gives to way.
func newVaultIssuer(way **relay) func(*testing.T, *rig) authority.Config {
	return func(t *testing.T, r *rig) authority.Config {
		c := newRootAndIssuer(t, r)
		s := kmstest.NewVault(t, readKey(t, strings.TrimPrefix(string(c.Key), "file:")))
		*way = newRelay(t, s.URL)
		r.getenv = s.Options.Getenv
		c.Key, c.Access = setting.KeyRef(s.Ref), s.Options.Access
		c.Endpoint = (*way).url
		return c
	}
}

// TestRefusedReloadLeavesAllAsItWas: whichever component refuses what it is to
// follow, the others have followed nothing: the state is the same one, clients are
// given the same documents, certificates are issued, and nothing is left open.
func TestRefusedReloadLeavesAllAsItWas(t *testing.T) {
	t.Parallel()
	var way *relay
	r := newRotatingTo(t, newVaultIssuer(&way), nil)
	now := time.Now().UTC().Truncate(time.Second)
	old, next := r.list[0], r.list[1]
	old.Record = lifecycle.Record{State: lifecycle.Retired, Retired: now}
	next.Record = lifecycle.Record{State: lifecycle.Active, Published: now, Activated: now, Forced: "a test"}
	shard := newShard(t, r.dir, "next", now.Add(time.Hour))
	all := func(c *config.Config) { // whatever a service takes, and each component has to open or to change
		c.Issuers[0].Audiences = append(slices.Clone(c.Issuers[0].Audiences), "another")
		c.CA.Authorities = []authority.NamedConfig{old, next}
		c.CTLog.Embedded.End, c.CTLog.Shards = shard.Start, []ctlog.EmbeddedConfig{shard}
		c.Server.Limits.TokenBytes--
	}
	before := r.state()
	refuses := func(name, says string, edit func(*config.Config)) {
		t.Helper()
		r.offer(func(c *config.Config) { all(c); edit(c) })
		_, refused := r.outcomes(t)
		r.hup()
		r.expect(t, name, 0, refused+1)
		if _, page := r.readiness(t); !strings.Contains(r.lines.String(), says) || !strings.Contains(page, "  old: active") {
			t.Errorf("%s: the log doesn't say %q, or the page says %s", name, says, page)
		}
		if r.state() != before {
			t.Errorf("%s: another state is in force", name)
		}
		for path, want := range map[string][]byte{"/trusted_root.json": before.documents.TrustedRoot, "/signing_config.json": before.documents.SigningConfig} {
			if _, text, err := get(t.Context(), r.url+path); err != nil || !bytes.Equal(text, want) {
				t.Errorf("%s: %s is another: %s, %v", name, path, text, err)
			}
		}
		r.issues(t, name, r.signingRequest(t, r.token(t, nil)))
		r.refuses(t, name, r.signingRequest(t, r.token(t, map[string]any{"aud": "another"})), fault.TokenAudience)
		poll(t, "the key is closed", func() bool { return way.open.Load() == 0 })
		log, err := r.openShard(t.Context(), shard, nil, nil, 0)
		if err != nil {
			t.Fatalf("%s: the log is held open: %v", name, err)
		}
		if err := log.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}

	// Configurations that a component refuses by itself.
	for _, c := range []struct {
		says string
		edit func(*config.Config)
	}{
		{"server.http_address: can't change", func(c *config.Config) { c.Server.HTTPAddress = "127.0.0.1:1" }},
		{"issuers[0].audiences: required", func(c *config.Config) { c.Issuers[0].Audiences = nil }},
		{"ca.authorities[1].chain: ", func(c *config.Config) { c.CA.Authorities[1].Chain = "missing.pem" }},
		{"ctlog.shards[0]: ", func(c *config.Config) { c.CTLog.Shards[0].Directory = "missing" }},
		{"server.rate_limits.per_address.rate", func(c *config.Config) { c.Server.RateLimits.PerAddress.Rate = -1 }},
	} {
		refuses(c.says, c.says, c.edit)
	}
	if way.taken.Load() == 0 {
		t.Error("no key was opened")
	}
	// A component that refuses, in each place of the order.
	steps := r.reloads.steps
	use := func(s []reloadStep) {
		r.changing.Lock()
		defer r.changing.Unlock()
		r.reloads.steps = s
	}
	for i := range len(steps) + 1 {
		name := fmt.Sprintf("refused as the step %d", i)
		use(slices.Insert(slices.Clone(steps), i, reloadStep{prepare: func(context.Context, *state) (func(context.Context), func(), error) {
			return nil, nil, errors.New(name)
		}}))
		refuses(name, `"faults":["`+name+`"]`, func(*config.Config) {})
	}
	use(steps)
	_, refused := r.outcomes(t)
	r.offer(all)
	r.hup()
	r.expect(t, "nobody refuses", 1, refused)
	r.further = append(r.further, shard)
	if _, page := r.readiness(t); r.state() == before || !strings.Contains(page, "  next: active") {
		t.Errorf("nobody refused, but the page says %s", page)
	}
	r.issues(t, "the next one signs", r.signingRequest(t, r.token(t, map[string]any{"aud": "another"})))
}
