package notify

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/store/storetest"
)

func everything(targets ...string) Rule {
	return Rule{Name: "everything", Event: Certificate, Targets: targets}
}

// TestStores holds both kinds of store to the same.
func TestStores(t *testing.T) {
	t.Parallel()
	storetest.Each(t, map[string]func(*testing.T, store.Config){
		"Down for a day":      testDownForADay,
		"With what caused it": testWithWhatCausedIt,
		"Replicas":            testReplicas,
		"Owners":              testOwners,
		"Silence":             testSilence,
		"Revocations":         testRevocations,
	})
}

// testDownForADay: who is down for a day gets each alert once it is back, once and in
// order; meanwhile it is asked ever more rarely, and another target waits for nothing.
func testDownForADay(t *testing.T, c store.Config) {
	down, up := newReceiver(t), newReceiver(t)
	r := newRig(t, c, Config{Rules: []Rule{everything("down", "up")}, Targets: []Target{hook(t, "down", down.URL), hook(t, "up", up.URL)}})
	down.set(true)
	const count = 24 * 4
	for i := range count {
		r.take(r.kept(email(numbered(i))))
		r.pass(15*time.Minute, 5*time.Minute)
		if got := sans(up.taken(t)); !slices.Equal(got, []string{numbered(i)}) {
			t.Fatalf("the other target has %v at %d", got, i)
		}
	}
	if down.asked > 80 || down.asked < 40 { // half an hour between two attempts
		t.Errorf("a receiver that is down was asked %d times in a day", down.asked)
	}
	if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "down: 96 alerts wait: the receiver answered 503") || strings.Contains(err.Error(), "up") {
		t.Errorf("readiness: %v", err)
	}
	if got := testutil.ToFloat64(r.queued.WithLabelValues("down")); got != count {
		t.Errorf("%v wait", got)
	}
	if got := testutil.ToFloat64(r.oldest.WithLabelValues("down")); got < 1e9 {
		t.Errorf("the oldest waits since %v", got)
	}
	down.set(false)
	r.pass(lastRetry+lastRetry/5, time.Minute)
	if got := sans(down.taken(t)); !slices.Equal(got, all(count)) {
		t.Errorf("%d alerts, %v", len(got), got)
	}
	if err := r.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(r.oldest.WithLabelValues("down")); got != 0 {
		t.Errorf("the oldest waits since %v", got)
	}
}

// TestRun: what runs in the service does the same by its own clock.
func TestRun(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	at.Config.SetKeepAlivesEnabled(false) // a connection that waits for the network would stop the clock
	at.set(true)
	hookTo := hook(t, "hook", at.URL)
	path := setting.Path(t.TempDir() + "/store.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), store.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		a, err := New(Options{
			Source: "https://ca.example.com", Known: time.Now, Index: index.New(), Now: time.Now, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		var f setting.Faults
		a.Use(Load("alerts", Config{Rules: []Rule{everything("hook")}, Targets: []Target{hookTo}}, &f))
		if err := errors.Join(f.Err(), a.Open(t.Context(), db)); err != nil {
			t.Fatal(err)
		}
		r := &rig{Alerts: a, t: t, now: time.Now()}
		for i := range 3 {
			r.take(r.kept(email(numbered(i))))
		}
		var running sync.WaitGroup
		ctx, stop := contextOf(t)
		running.Go(func() { _ = a.Run(ctx) })
		pass(ctx, time.Hour)
		if got := at.taken(t); len(got) != 0 || at.asked < 5 {
			t.Errorf("%d alerts at a receiver that is down, which was asked %d times", len(got), at.asked)
		}
		at.set(false)
		pass(ctx, 2*lastRetry)
		if got := sans(at.taken(t)); !slices.Equal(got, all(3)) {
			t.Errorf("%v", got)
		}
		stop()
		running.Wait()
	})
}

// testWithWhatCausedIt: alerts are there with what caused them or not at all, and an index
// that is made anew tells nobody twice. What was logged before there were alerts concerns nobody.
func testWithWhatCausedIt(t *testing.T, c store.Config) {
	at := newReceiver(t)
	r := newRig(t, c, Config{Rules: []Rule{everything("hook")}, Targets: []Target{hook(t, "hook", at.URL)}})
	old := r.kept(email("old@example.com"))
	old.Logged = r.now.Add(-time.Hour)
	entries := []index.Kept{old, r.kept(email("a@example.com")), r.kept(email("b@example.com"))}
	no := errors.New("no")
	if err := r.store.Write(t.Context(), func(tx store.Handle) error {
		return errors.Join(r.Take(t.Context(), tx, "log", slices.Values(entries)), no)
	}); !errors.Is(err, no) {
		t.Fatal(err)
	}
	r.pass(time.Minute, time.Second)
	if got := at.taken(t); len(got) != 0 {
		t.Errorf("%v of entries that weren't kept", got)
	}
	r.take(entries...)
	r.take(entries...)
	r.pass(time.Minute, time.Second)
	got := at.taken(t)
	if !slices.Equal(sans(got), []string{"a@example.com", "b@example.com"}) {
		t.Errorf("%v", sans(got))
	}
	want := map[string]string{
		"san": "a@example.com", "san_type": "email", "identity": "a@example.com", "issuer": "https://login.example.com", "serial": "12ab",
		"rule": "everything", "index": "1", "not_before": "2026-05-04T03:02:01Z", "not_after": "2026-05-04T03:12:01Z",
	}
	e := got[0]
	if !maps.Equal(e.Data, want) || e.SpecVersion != "1.0" || e.Type != "dev.mayfly.alert.certificate" || e.Source != "https://ca.example.com" || e.Subject != "12ab" ||
		!e.Time.Equal(old.NotBefore) || e.ID == "" || e.ID == got[1].ID || e.DataContentType != "application/json" {
		t.Errorf("%+v", e)
	}
}

// testReplicas: two processes that share a store send each alert once, and in order.
func testReplicas(t *testing.T, c store.Config) {
	at := newReceiver(t)
	r := newRig(t, c, Config{Rules: []Rule{everything("hook")}, Targets: []Target{hook(t, "hook", at.URL)}})
	other := newRig(t, c, Config{Rules: []Rule{everything("hook")}, Targets: []Target{hook(t, "hook", at.URL)}})
	const count = 40
	var both sync.WaitGroup
	for _, one := range []*rig{r, other} {
		both.Go(func() {
			hooked := one.current.Load().targets["hook"]
			for sent := 0; sent < 200; sent++ {
				one.deliver(t.Context(), hooked)
			}
		})
	}
	for i := range count {
		r.take(r.kept(email(numbered(i))))
	}
	both.Wait()
	r.pass(time.Minute, time.Second)
	if got := sans(at.taken(t)); !slices.Equal(got, all(count)) {
		t.Errorf("%d: %v", len(got), got)
	}
}

// testOwners: each owner hears of their own alone, a digest's time after the first; who
// has no mail address hears nothing; a mailbox that takes nothing holds up no other.
func testOwners(t *testing.T, c store.Config) {
	r := newRig(t, c, Config{
		Rules:   []Rule{everything("owners")},
		Targets: []Target{{Name: "owners", Owner: true, Digest: time.Hour}}, SMTP: SMTP{Address: "127.0.0.1:1", From: "ca@example.com"},
	})
	got := &captured{}
	r.current.Load().targets["owners"].sender = got
	forged := email("mallory@example.com>, alice@example.com")
	uri := map[string]string{"san": "https://ci.example.com/alice@example.com", "san_type": "uri"}
	for range 2 {
		r.take(r.kept(email("alice@example.com")), r.kept(email("bob@example.com")), r.kept(forged), r.kept(uri))
		r.pass(20*time.Minute, time.Minute)
	}
	if len(got.got) != 0 {
		t.Errorf("%v before an hour", got.got)
	}
	r.pass(21*time.Minute, time.Minute)
	for _, owner := range []string{"alice@example.com", "bob@example.com"} {
		if parts := got.got[owner]; len(parts) != 1 || !slices.Equal(sans(parts[0]), []string{owner, owner}) {
			t.Errorf("%s: %v", owner, parts)
		}
	}
	if len(got.got) != 2 {
		t.Errorf("%v", slices.Collect(maps.Keys(got.got)))
	}
	for range 250 { // more than one message has
		r.take(r.kept(email("alice@example.com")))
	}
	got.got = nil
	r.pass(2*time.Hour, time.Minute)
	var sizes []int
	for _, part := range got.got["alice@example.com"] {
		sizes = append(sizes, len(part))
	}
	if !slices.Equal(sizes, []int{100, 100, 50}) {
		t.Errorf("messages of %v", sizes)
	}
}

// TestConditions: rules are about what their words say, over the fields of search.
func TestConditions(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	r := newRig(t, store.Config{Path: setting.Path(t.TempDir() + "/store.db")}, Config{
		Rules: []Rule{
			{Name: "outsiders", Event: Certificate, When: `san.endsWith("@example.com") && issuer != "https://login.example.com"`, Targets: []string{"hook"}},
			{Name: "long", Event: Certificate, When: `not_after - not_before > duration("1h")`, Targets: []string{"hook"}},
			{Name: "new", Event: FirstUse, When: `kind == "new_runner" && value.startsWith("self")`, Targets: []string{"hook"}},
			{Name: "any", Event: FirstUse, Targets: []string{"hook"}},
		},
		Targets: []Target{hook(t, "hook", at.URL)},
	})
	outsider := email("eve@example.com")
	outsider["issuer"] = "https://elsewhere.example.net"
	long := r.kept(email("long@example.com"))
	long.NotAfter = long.NotBefore.Add(2 * time.Hour)
	r.take(r.kept(email("alice@example.com")), r.kept(outsider), long,
		r.kept(email("bob@example.com"), index.Event{Kind: "new_runner", Value: "self-hosted"}, index.Event{Kind: "new_issuer", Value: "https://other.example"}))
	r.round()
	var got []string
	for _, e := range at.taken(t) {
		got = append(got, e.Data["rule"]+" "+e.Data["san"]+" "+e.Data["value"])
	}
	want := []string{"outsiders eve@example.com ", "long long@example.com ", "new bob@example.com self-hosted", "any bob@example.com self-hosted", "any bob@example.com https://other.example"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// testSilence: who had a certificate and then none for too long is told of, once, and
// again after the next one; an index that is late makes no silence.
func testSilence(t *testing.T, c store.Config) {
	at := newReceiver(t)
	r := newRig(t, c, Config{
		Rules:   []Rule{{Name: "nightly", Event: Silence, After: 26 * time.Hour, When: `workflow.endsWith("/nightly.yml")`, Targets: []string{"hook"}}},
		Targets: []Target{hook(t, "hook", at.URL)},
	})
	nightly := func(repository string) map[string]string {
		return map[string]string{"identity": repository, "workflow": repository + "/.github/workflows/nightly.yml", "san_type": "uri"}
	}
	one, two := "https://github.com/acme/one", "https://github.com/acme/two"
	began := r.now
	r.take(r.kept(nightly(one)), r.kept(nightly(two)), r.kept(map[string]string{"identity": "https://github.com/acme/other"}))
	r.pass(24*time.Hour, time.Hour)
	r.take(r.kept(nightly(one)))
	r.now = r.now.Add(48 * time.Hour) // the index knows nothing of
	r.round()
	if got := at.taken(t); len(got) != 0 {
		t.Errorf("%v, with an index that is late", got)
	}
	r.known = began.Add(27 * time.Hour)
	r.round()
	r.round()
	got := at.taken(t)
	if len(got) != 1 || got[0].Data["identity"] != two || got[0].Data["last"] != "2026-05-04T03:02:01Z" || got[0].Data["after"] != "26h0m0s" || got[0].Type != "dev.mayfly.alert.silence" || got[0].Data["index"] != "" {
		t.Errorf("%+v", got)
	}
	r.take(r.kept(nightly(two)))
	r.pass(27*time.Hour, time.Hour)
	var identities []string
	for _, e := range at.taken(t) {
		identities = append(identities, e.Data["identity"])
	}
	if slices.Sort(identities); !slices.Equal(identities, []string{one, two}) {
		t.Errorf("%v", identities)
	}
}

// testRevocations: each statement is told of once, with what the index knows of its certificate.
func testRevocations(t *testing.T, c store.Config) {
	at := newReceiver(t)
	config := Config{
		Rules:   []Rule{{Name: "revoked", Event: Revocation, When: `reason == "keyCompromise"`, Targets: []string{"hook"}}},
		Targets: []Target{hook(t, "hook", at.URL)},
	}
	r := newRig(t, c, config)
	r.made = statements{
		`{"authority":"aa","by":{"right":"administer"},"index":0,"not_before":"2026-05-04T03:00:00Z","reason":"keyCompromise","serial":"1","time":"2026-05-01T00:00:00Z"}`,
		`{"authority":"aa","by":{"right":"administer"},"index":1,"not_before":"2026-05-04T03:00:00Z","reason":"superseded","serial":"2","time":"2026-05-04T04:00:00Z"}`,
		`{"authority":"aa","by":{"right":"administer"},"comment":"pipeline","index":2,"not_before":"2026-05-04T03:00:00Z","reason":"keyCompromise","serial":"3","time":"2026-05-04T04:00:00Z"}`,
	}
	again := newRig(t, c, config) // as after a restart
	again.made = r.made
	for range 2 {
		r.round()
		again.round()
	}
	got := at.taken(t)
	want := map[string]string{"rule": "revoked", "authority": "aa", "serial": "3", "reason": "keyCompromise", "comment": "pipeline", "statement": "2"}
	if len(got) != 1 || !maps.Equal(got[0].Data, want) || got[0].Type != "dev.mayfly.alert.revocation" {
		t.Errorf("%+v", got)
	}
}

// TestBounds: what waits for a target is bounded in number and age, and the loss is counted.
func TestBounds(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	r := newRig(t, store.Config{Path: setting.Path(t.TempDir() + "/store.db")}, Config{Rules: []Rule{everything("hook")}, Targets: []Target{hook(t, "hook", at.URL)}})
	at.set(true)
	r.take(r.kept(email("alice@example.com")))
	r.pass(maxWait+time.Hour, time.Hour)
	at.set(false)
	r.take(r.kept(email("bob@example.com")))
	r.round()
	if got := sans(at.taken(t)); !slices.Equal(got, []string{"bob@example.com"}) {
		t.Errorf("%v after a week", got)
	}
	r.note("hook", func(s *status) { s.queued = maxQueued })
	r.take(r.kept(email("carol@example.com")))
	if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "more are lost") {
		t.Errorf("%v", err)
	}
	r.round()
	if got := at.taken(t); len(got) != 0 || testutil.ToFloat64(r.alerts.WithLabelValues("hook", outcomeLost)) != 1 {
		t.Errorf("%v", got)
	}
}

// TestRemovedTarget: of a target that was removed nothing is shown, whatever was on its way.
func TestRemovedTarget(t *testing.T) {
	t.Parallel()
	at := newReceiver(t)
	r := newRig(t, store.Config{Path: setting.Path(t.TempDir() + "/store.db")}, Config{Rules: []Rule{everything("hook", "more")}, Targets: []Target{hook(t, "hook", at.URL), hook(t, "more", at.URL)}})
	at.set(true)
	r.take(r.kept(email("alice@example.com")))
	r.round()
	r.use(Config{Rules: []Rule{everything("more")}, Targets: []Target{hook(t, "more", at.URL)}})
	r.ended(t.Context(), "hook", io.ErrUnexpectedEOF)
	r.round()
	for _, c := range []prometheus.Collector{r.queued, r.oldest} {
		if n := testutil.CollectAndCount(c); n != 1 {
			t.Errorf("%d targets are shown", n)
		}
	}
	if n := testutil.CollectAndCount(r.alerts); n != 3 { // sent, failed, lost
		t.Errorf("%d series of alerts", n)
	}
	if err := r.Ready(t.Context()); err == nil || strings.Contains(err.Error(), "hook") {
		t.Errorf("readiness: %v", err)
	}
}

// TestReload: other rules and targets are in force at once, and what waits stays.
func TestReload(t *testing.T) {
	t.Parallel()
	first, second := newReceiver(t), newReceiver(t)
	r := newRig(t, store.Config{Path: setting.Path(t.TempDir() + "/store.db")}, Config{Rules: []Rule{everything("hook")}, Targets: []Target{hook(t, "hook", first.URL)}})
	r.take(r.kept(email("alice@example.com")))
	r.use(Config{Rules: []Rule{everything("hook", "more")}, Targets: []Target{hook(t, "hook", second.URL), hook(t, "more", second.URL)}})
	r.take(r.kept(email("bob@example.com")))
	r.round()
	got := sans(second.taken(t))
	if slices.Sort(got); !slices.Equal(got, []string{"alice@example.com", "bob@example.com", "bob@example.com"}) || len(first.taken(t)) != 0 {
		t.Errorf("%v", got)
	}
}
