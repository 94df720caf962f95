package service

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// rotating is a service with the authority `old`, and `next` beside it.
type rotating struct {
	*reloading
	list    []authority.NamedConfig
	records []lifecycle.Entry
}

func newRotating(t *testing.T) *rotating { return newRotatingTo(t, newRootAndIssuer, nil) }

// newRootAndIssuer is a CA with a root of its own.
func newRootAndIssuer(t *testing.T, r *rig) authority.Config {
	t.Helper()
	return newRootAndIssuerAt(t, filepath.Join(r.dir, "next"))
}

func newRootAndIssuerAt(t *testing.T, dir string) authority.Config {
	t.Helper()
	made, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: dir, Organization: "Example", Now: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return authority.Config{Chain: setting.Path(made.Chain), Key: setting.KeyRef("file:" + made.IssuingKey)}
}

// newIssuer is another issuing CA under the first one's root.
func newIssuer(t *testing.T, r *rig) authority.Config {
	t.Helper()
	in := func(name string) string { return filepath.Join(r.dir, authorityName, name) }
	if _, err := keystore.GenerateFile(in("next.key.pem"), kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	key, root := rootKey(t, r.dir)
	ref := "file:" + in("next.key.pem")
	return authority.Config{Chain: certify(t, "Example next", in("next.pem"), ref, kms.Options{}, root, key), Key: setting.KeyRef(ref)}
}

// newRotatingTo is newRotating with a `next` of another making, and a
// configuration that edit has changed.
func newRotatingTo(t *testing.T, next func(*testing.T, *rig) authority.Config, edit func(*rig, *config.Config)) *rotating {
	t.Helper()
	r := &rotating{records: []lifecycle.Entry{{Name: "old", Record: lifecycle.Record{State: lifecycle.Active}}, {Name: "next"}}}
	r.reloading = newReloading(t, func(rig *rig, c *config.Config) {
		r.list = []authority.NamedConfig{
			{Name: "old", Config: c.CA.Authority},
			{Name: "next", Config: next(t, rig)},
		}
		if edit != nil {
			edit(rig, c)
		}
		c.CA.Authority = authority.Config{}
		c.CA.Authorities = r.with(r.records)
		limits := &c.Server.RateLimits
		limits.PerAddress.Rate, limits.PerPrincipal.Rate = 0, 0
	})
	return r
}

// with are the authorities with other states.
func (r *rotating) with(records []lifecycle.Entry) []authority.NamedConfig {
	all := slices.Clone(r.list)
	for i := range all {
		all[i].Record = records[i].Record
	}
	return all
}

// put lets the service read records.
func (r *rotating) put(records []lifecycle.Entry) {
	r.offer(func(c *config.Config) { c.CA.Authorities = r.with(records) })
	r.hup()
}

// do takes a step, as the command would.
func (r *rotating) do(t *testing.T, name string, action lifecycle.Action) {
	t.Helper()
	next, err := lifecycle.Do(r.records, name, action, lifecycle.Terms{Now: time.Now(), Propagation: 24 * time.Hour, Force: true, Again: true})
	if err != nil {
		t.Fatal(err)
	}
	r.records = next
	r.put(next)
}

// root is the trusted root that clients are given now.
func (r *rotating) root(t *testing.T) *trustroot.History {
	t.Helper()
	_, b, err := get(t.Context(), r.url+"/trusted_root.json")
	if err != nil {
		t.Fatal(err)
	}
	root, err := trustroot.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// trusts reports whether a client with that trusted root takes the leaf.
func trusts(root *trustroot.History, leaf *x509.Certificate) bool {
	return slices.ContainsFunc(root.Authorities, func(a trustroot.Authority) bool {
		return a.Holds(leaf.NotBefore) && leaf.CheckSignatureFrom(a.Chain[0]) == nil
	})
}

// TestSuccessionUnderLoad: through a whole rotation every request gets a
// certificate, and all of them verify under the trusted root of afterwards.
func TestSuccessionUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	o := r.signingRequest(t, r.token(t, nil))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	var done atomic.Int64
	var mu sync.Mutex
	var leaves []*x509.Certificate
	for worker := range 4 {
		load.Go(func() {
			for n := worker; ctx.Err() == nil; n++ {
				a := r.ask(t, edges[n%len(edges)], o)
				if a.reason != "" || a.failed != nil || len(a.chain) != 3 {
					t.Errorf("%s: %s %q %v", a.edge, a.reason, a.message, a.failed)
					return
				}
				mu.Lock()
				leaves = append(leaves, a.chain[0])
				mu.Unlock()
				done.Add(1)
			}
		})
	}
	goOn := func() {
		t.Helper()
		before := done.Load()
		poll(t, "requests go on", func() bool { return done.Load() >= before+8 || t.Failed() })
	}
	for _, s := range []struct {
		name   string
		action lifecycle.Action
		listed int
		signer string
	}{
		{"next", lifecycle.Prepare, 1, "old"},
		{"next", lifecycle.Publish, 2, "old"},
		{"next", lifecycle.Activate, 2, "next"},
		{"old", lifecycle.Publish, 2, "next"},
		{"old", lifecycle.Activate, 2, "old"},
		{"next", lifecycle.Publish, 2, "old"},
		{"next", lifecycle.Activate, 2, "next"},
		{"old", lifecycle.Retire, 2, "next"},
	} {
		goOn()
		r.do(t, s.name, s.action)
		if got := len(r.root(t).Authorities); got != s.listed {
			t.Errorf("%s %s: %d authorities in the trusted root; want %d", s.action, s.name, got, s.listed)
		}
		if _, page := r.readiness(t); !strings.Contains(page, "  "+s.signer+": active, valid to ") {
			t.Errorf("%s %s: /readyz?verbose says %q", s.action, s.name, page)
		}
	}
	goOn()
	stop()
	load.Wait()
	r.expect(t, "at the end", 8, 0)
	root, issuers := r.root(t), map[string]int{}
	for _, leaf := range leaves {
		if !trusts(root, leaf) {
			t.Errorf("a certificate that began at %v doesn't verify under the trusted root of afterwards", leaf.NotBefore)
		}
		issuers[string(leaf.AuthorityKeyId)]++
	}
	if len(issuers) != 2 {
		t.Errorf("%d authorities signed; both should have", len(issuers))
	}
	last := leaves[len(leaves)-1]
	first := leaves[0]
	r.do(t, "old", lifecycle.Distrust)
	if root := r.root(t); trusts(root, first) || !trusts(root, last) {
		t.Error("distrusted: what the old one signed is still trusted, or what the new one signed isn't")
	}
	_, roots, err := get(t.Context(), r.url+"/ctlog/"+time.Now().UTC().Format("2006")+"/ct/v1/get-roots")
	if err != nil || strings.Count(string(roots), `"MII`) != 1 {
		t.Errorf("the embedded log accepts %.300s, %v; want the new root", roots, err)
	}
}

// TestClientsAreToldOfAnAuthorityBeforeItSigns: with the old one still signing, the
// trusted root has the new one already.
func TestClientsAreToldOfAnAuthorityBeforeItSigns(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	signer, looked := r.activeChain()[0], false
	look := func(context.Context) {
		looked = true
		if n := len(r.root(t).Authorities); n != 2 || !bytes.Equal(r.activeChain()[0], signer) {
			t.Errorf("%d authorities are in the trusted root; does another sign already? %t", n, !bytes.Equal(r.activeChain()[0], signer))
		}
	}
	r.changing.Lock()
	last := len(r.reloads.steps) - 1
	r.reloads.steps = slices.Insert(r.reloads.steps, last, reloadStep{prepare: func(context.Context, *state) (func(context.Context), func(), error) {
		return look, nil, nil
	}})
	r.changing.Unlock()
	now := time.Now().UTC().Truncate(time.Second)
	r.put([]lifecycle.Entry{
		{Name: "old", Record: lifecycle.Record{State: lifecycle.Retired, Retired: now}},
		{Name: "next", Record: lifecycle.Record{State: lifecycle.Active, Published: now, Activated: now, Forced: "a test"}},
	})
	r.expect(t, "activated", 1, 0)
	if !looked || bytes.Equal(r.activeChain()[0], signer) {
		t.Errorf("nobody looked, or the old one signs: %t", looked)
	}
}

// TestPropagationGuardHoldsAgainstConfigurations: what no command would write, a
// person may; the service that runs refuses it, whatever times it claims.
func TestPropagationGuardHoldsAgainstConfigurations(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	now := time.Now().UTC().Truncate(time.Second)
	retired := lifecycle.Entry{Name: "old", Record: lifecycle.Record{State: lifecycle.Retired, Retired: now}}
	active := func(published, activated time.Time) lifecycle.Entry {
		return lifecycle.Entry{Name: "next", Record: lifecycle.Record{State: lifecycle.Active, Prepared: published, Published: published, Activated: activated}}
	}
	old := r.records[0]
	for name, c := range map[string]struct {
		records []lifecycle.Entry
		says    string
	}{
		"never published":                  {[]lifecycle.Entry{retired, active(time.Time{}, now)}, "ca.authorities[1].published: required of an active authority"},
		"too soon":                         {[]lifecycle.Entry{retired, active(now.Add(-time.Hour), now)}, "ca.authorities[1].activated: "},
		"a lie":                            {[]lifecycle.Entry{retired, active(now.Add(-48*time.Hour), now)}, "ca.authorities[1].published: this service has listed next for 0s, whatever is written"},
		"in the future":                    {[]lifecycle.Entry{retired, active(now, now.Add(24*time.Hour))}, "ca.authorities[1].activated: "},
		"two active":                       {[]lifecycle.Entry{old, active(now.Add(-48*time.Hour), now)}, "2 authorities are active"},
		"none":                             {[]lifecycle.Entry{retired, {Name: "next"}}, "0 authorities are active"},
		"the active one goes":              {[]lifecycle.Entry{{Name: "old", Record: lifecycle.Record{State: lifecycle.Distrusted, Distrusted: now}}, active(now.Add(-48*time.Hour), now)}, "ca.authorities[0].state: old signs in this service"},
		"the active one is no more listed": {[]lifecycle.Entry{{Name: "old", Record: lifecycle.Record{State: lifecycle.Prepared, Prepared: now}}, active(now.Add(-48*time.Hour), now)}, "ca.authorities[0].state: old is no more listed"},
		"it ended long before":             {[]lifecycle.Entry{{Name: "old", Record: lifecycle.Record{State: lifecycle.Retired, Retired: now.Add(-2 * time.Hour)}}, active(now.Add(-48*time.Hour), now)}, "ca.authorities[0].retired: old signed in this service until now"},
	} {
		r.put(c.records)
		if !strings.Contains(r.lines.String(), c.says) {
			t.Errorf("%s: no line of the log has %q", name, c.says)
		}
		if _, page := r.readiness(t); !strings.Contains(page, "  old: active") || !strings.Contains(page, "configuration: failing, but") {
			t.Errorf("%s: %q", name, page)
		}
	}
	r.issues(t, "the old one signs", r.signingRequest(t, r.token(t, nil)))
	if code, _ := r.readiness(t); code != http.StatusOK {
		t.Errorf("not ready: %d", code)
	}
}

// TestSuccessionAsksLogs: an authority that must have a precertificate signing
// certificate isn't activated where the log refuses what that signs; where the log
// takes it, its first certificate costs one signature already.
func TestSuccessionAsksLogs(t *testing.T) {
	t.Parallel()
	var l *remoteLog
	r := newRotatingTo(t, newIssuer, func(rig *rig, c *config.Config) { l = newRemoteLog(t, rig, c) })
	r.list[1].PrecertificateSigner = authority.SignerOn
	r.do(t, "next", lifecycle.Prepare)
	r.do(t, "next", lifecycle.Publish)
	l.breaks(refusePresigned(t))
	before := r.records
	r.do(t, "next", lifecycle.Activate)
	const want = "ca.authorities[1].precertificate_signer: is on, but a log refuses what such a certificate signs"
	if !strings.Contains(r.lines.String(), want) {
		t.Errorf("no line of the log has %q", want)
	}
	if _, page := r.readiness(t); !strings.Contains(page, "  old: active") || !strings.Contains(page, "configuration: failing, but") {
		t.Errorf("refused, but /readyz?verbose says %q", page)
	}
	l.fault.Store(nil)
	r.records = before
	r.do(t, "next", lifecycle.Activate)
	if _, page := r.readiness(t); !strings.Contains(page, "signatures a certificate: 1:") || !strings.Contains(page, "  next: active") {
		t.Errorf("/readyz?verbose says %q", page)
	}
	r.issues(t, "the new one signs", r.signingRequest(t, r.token(t, nil)))
}

// TestSwappedChainFile: an authority that clients are told to trust can't leave the
// trusted root by another chain under its name.
func TestSwappedChainFile(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	r.do(t, "next", lifecycle.Prepare)
	r.do(t, "next", lifecycle.Publish)
	before := r.root(t)
	other := newRootAndIssuerAt(t, filepath.Join(r.dir, "other"))
	for i, name := range []string{"old", "next"} {
		kept := r.list[i].Config
		r.list[i].Config = other
		r.put(r.records)
		want := fmt.Sprintf("ca.authorities[%d].chain: begins with another certificate than the one of %s that clients are told to trust", i, name)
		if !strings.Contains(r.lines.String(), want) {
			t.Errorf("no line of the log has %q", want)
		}
		if !reflect.DeepEqual(r.root(t), before) {
			t.Errorf("%s: the trusted root has changed", name)
		}
		r.list[i].Config = kept
	}
	r.put(r.records)
	if _, page := r.readiness(t); strings.Contains(page, "configuration: failing") {
		t.Errorf("put back, but /readyz?verbose says %q", page)
	}
}
