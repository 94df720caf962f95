package ctlog_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// faulty makes a member with a key of its own.
func faulty(t *testing.T, url string, ca *ctlogtest.CA, f Fault) *Faulty {
	t.Helper()
	key := ctlogtest.NewSigner(t)
	spki := key.SPKI(t)
	honest := &ctlogtest.Honest{Signer: key, About: ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: url}}
	return NewFaulty(t, honest, key, ca.Chain(t), f)
}

func newPolicy(t *testing.T, o ctlog.Options, members ...ctlog.Log) *ctlog.Policy {
	t.Helper()
	p, err := ctlog.NewPolicy(members, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func counter(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestOutageOfTheOnlyLogIsRefusedInTime: every outage of the only log is a 503 with a time to come back,
// within the deadline.
func TestOutageOfTheOnlyLogIsRefusedInTime(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	for _, f := range Outages() {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			p := newPolicy(t, ctlog.Options{Timeout: 200 * time.Millisecond}, faulty(t, "https://a", ca, f))
			_, err := p.Submit(t.Context(), ca.Chain(t))
			if got := fault.From(err); got.Reason != fault.LogUnavailable || got.RetryAfter <= 0 {
				t.Errorf("got %v, want LOG_UNAVAILABLE with Retry-After", err)
			}
		})
	}
}

// TestAcceptsTellsARefusalFromAnOutage: a chain is accepted when every log takes it; a log that refuses or
// lies is told from one that can't be asked, and nothing raises the alarm for SCTs
// that something was to be issued on.
func TestAcceptsTellsARefusalFromAnOutage(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	refusals := append(Lies(), Refusing, Unclassified)
	for _, f := range slices.Concat([]Fault{None}, Outages(), refusals) {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			healthy, other := faulty(t, "https://a", ca, None), faulty(t, "https://b", ca, f)
			p := newPolicy(t, ctlog.Options{Timeout: 200 * time.Millisecond, Metrics: registry}, healthy, other)
			err := p.Accepts(t.Context(), ca.Chain(t))
			if want := slices.Contains(refusals, f); errors.Is(err, ctlog.ErrRefused) != want || (err == nil) != (f == None) {
				t.Errorf("got %v; a refusal: %t", err, want)
			}
			if healthy.Calls.Load() != 1 || other.Calls.Load() != 1 {
				t.Errorf("asked %d and %d times, want once each", healthy.Calls.Load(), other.Calls.Load())
			}
			if n := counter(t, registry, "mayfly_ctlog_bad_sct_total"); n != 0 {
				t.Errorf("%v alarms", n)
			}
		})
	}
}

// TestFalseSCTIsNeverPassedOn: no lie gets through; it is our failure, and raises the alarm.
func TestFalseSCTIsNeverPassedOn(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	for _, f := range Lies() {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			liar := faulty(t, "https://a", ca, f)
			p := newPolicy(t, ctlog.Options{Metrics: registry}, liar)
			_, err := p.Submit(t.Context(), ca.Chain(t))
			if got := fault.From(err); err == nil || got.Kind() != fault.Internal {
				t.Errorf("got %v, want an internal error", err)
			}
			if got := counter(t, registry, "mayfly_ctlog_bad_sct_total"); got != 1 {
				t.Errorf("alarm metric is %v, want 1", got)
			}
			honest := newPolicy(t, ctlog.Options{}, liar, faulty(t, "https://b", ca, None))
			if _, err := honest.Submit(t.Context(), ca.Chain(t)); err != nil {
				t.Errorf("the next log is honest: %v", err)
			}
		})
	}
}

// TestFailover: the order decides, then the stagger.
func TestFailover(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	for name, tt := range map[string]struct {
		faults []Fault
		want   int // which member's SCT
		calls  []int64
	}{
		"first":         {[]Fault{None, None}, 0, []int64{1, 0}},
		"second":        {[]Fault{Down, None}, 1, []int64{1, 1}},
		"refused":       {[]Fault{Refusing, None}, 1, []int64{1, 1}},
		"after silence": {[]Fault{Slow, None}, 1, []int64{1, 1}},
		"third":         {[]Fault{Slow, Broken, None}, 2, []int64{1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // a machine that is busy must not look like a silent log
				var logs []*Faulty
				var members []ctlog.Log
				for i, f := range tt.faults {
					logs = append(logs, faulty(t, "https://"+string(rune('a'+i)), ca, f))
					members = append(members, logs[i])
				}
				p := newPolicy(t, ctlog.Options{Stagger: 20 * time.Millisecond}, members...)
				scts, err := p.Submit(t.Context(), ca.Chain(t))
				if err != nil || len(scts) != 1 || scts[0].LogID != logs[tt.want].Description().ID {
					t.Fatalf("got %v, %v; want one SCT of log %d", scts, err, tt.want)
				}
				for i, want := range tt.calls {
					if got := logs[i].Calls.Load(); got != want {
						t.Errorf("log %d was asked %d times, want %d", i, got, want)
					}
				}
			})
		})
	}
}

// TestWhatTheCallerReadsWhenNoLogAnswers: what the caller reads when nothing worked.
func TestWhatTheCallerReadsWhenNoLogAnswers(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	both := newPolicy(t, ctlog.Options{}, faulty(t, "https://a", ca, Down), faulty(t, "https://b", ca, WrongTime))
	if _, err := both.Submit(t.Context(), ca.Chain(t)); fault.From(err).Kind() != fault.Internal {
		t.Errorf("an outage hides a lie: %v", err)
	}
	slow := newPolicy(t, ctlog.Options{}, faulty(t, "https://a", ca, Slow))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := slow.Submit(ctx, ca.Chain(t)); !errors.Is(err, context.Canceled) || fault.From(err).Reason != fault.ClientGone {
		t.Errorf("got %v, want the caller gone", err)
	}
	if _, err := slow.Submit(t.Context(), ctlog.Chain{}); err == nil {
		t.Error("an empty chain was submitted")
	}
	closed := faulty(t, "https://a", ca, None)
	closed.Log.(*ctlogtest.Honest).About.End = time.Now().Add(-time.Hour) //nolint:forcetypeassert // see faulty
	over := newPolicy(t, ctlog.Options{}, closed)
	if _, err := over.Submit(t.Context(), ca.Chain(t)); fault.From(err).Reason != fault.LogUnavailable || closed.Calls.Load() != 0 {
		t.Errorf("a log after its window: %v, asked %d times", err, closed.Calls.Load())
	}
	if err := over.Ready(t.Context()); err == nil {
		t.Error("ready with no log in its window")
	}
}

// TestOutsideEveryWindowTheClientLearnsWhenToTryAgain: at a time when too few logs
// take certificates, the client reads so and the operator reads every window.
func TestOutsideEveryWindowTheClientLearnsWhenToTryAgain(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	now := year2028.Add(-2 * time.Hour)
	clock := func() time.Time { return now }
	ended := windowed(t, "https://a", year2027, now, clock)
	next, later := windowed(t, "https://b", year2028, time.Time{}, clock), windowed(t, "https://c", year2029, time.Time{}, clock)
	for name, tt := range map[string]struct {
		logs []ctlog.Log
		scts int
		wait time.Duration
	}{
		"none comes":        {[]ctlog.Log{ended}, 1, fault.NoRetry},
		"one comes":         {[]ctlog.Log{later, ended, next}, 1, 2 * time.Hour},
		"two are asked for": {[]ctlog.Log{ended, next, later}, 2, year2029.Sub(now)},
	} {
		p := newPolicy(t, ctlog.Options{Now: clock, SCTs: tt.scts}, tt.logs...)
		_, err := p.Submit(t.Context(), ca.Chain(t))
		f := fault.From(err)
		if f.Reason != fault.LogUnavailable || !strings.Contains(f.Public, "at this time") || f.RetryAfter != tt.wait {
			t.Errorf("%s: reads %q, to try again after %s; want %s", name, f.Public, f.RetryAfter, tt.wait)
		}
		if !strings.Contains(err.Error(), "https://a from 2027-01-01T00:00:00Z until 2027-12-31T22:00:00Z") {
			t.Errorf("%s: the operator doesn't read the windows: %v", name, err)
		}
	}
}

// TestAnSCTOutsideTheLogsWindowIsNone: an SCT whose own time is outside the log's window is none, though
// the log was asked within it: clients that know the window refuse it.
func TestAnSCTOutsideTheLogsWindowIsNone(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	now := time.Now()
	for name, c := range map[string]struct {
		start, end, asked, signed time.Time
		good                      bool
	}{
		"within":                      {now.Add(-time.Hour), now.Add(time.Hour), now, now, true},
		"open":                        {time.Time{}, time.Time{}, now, now, true},
		"the log's clock is behind":   {now, time.Time{}, now.Add(time.Second), now.Add(-5 * time.Second), false},
		"the log's clock is ahead":    {time.Time{}, now, now.Add(-time.Second), now.Add(5 * time.Second), false},
		"at the end, which is not in": {time.Time{}, now.Truncate(time.Millisecond), now.Add(-time.Second), now, false},
	} {
		log := faulty(t, "https://a", ca, None)
		honest := log.Log.(*ctlogtest.Honest) //nolint:forcetypeassert // see faulty
		honest.About.Start, honest.About.End, honest.Now = c.start, c.end, func() time.Time { return c.signed }
		p := newPolicy(t, ctlog.Options{Now: func() time.Time { return c.asked }}, log)
		scts, err := p.Submit(t.Context(), ca.Chain(t))
		if good := err == nil && len(scts) == 1; good != c.good || !good && fault.From(err).Kind() != fault.Internal {
			t.Errorf("%s: %d SCTs, %v", name, len(scts), err)
		}
	}
}

// TestNewPolicy: a log that can't be verified is refused at start.
func TestNewPolicy(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	a := faulty(t, "https://a", ca, None)
	stranger := faulty(t, "https://b", ca, None)
	stranger.Log.(*ctlogtest.Honest).About.ID[0] ^= 1 //nolint:forcetypeassert // see faulty
	keyless := faulty(t, "https://c", ca, None)
	keyless.Log.(*ctlogtest.Honest).About.SPKI = nil //nolint:forcetypeassert // see faulty
	for name, members := range map[string][]ctlog.Log{
		"none": {}, "no key": {keyless}, "id is not the key's": {stranger}, "twice": {a, a},
	} {
		if _, err := ctlog.NewPolicy(members, ctlog.Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestConfig: all faults at once, with their paths.
func TestConfig(t *testing.T) {
	t.Parallel()
	embedded := ctlog.EmbeddedConfig{Directory: "/log", MarkFile: "/mark", URL: "https://log.example/2027", Key: "file:k"}
	for name, tt := range map[string]struct {
		c    ctlog.Config
		want []string // paths of the faults
	}{
		"embedded":  {c: ctlog.Config{Mode: ctlog.ModeEmbedded, Embedded: embedded}},
		"none":      {c: ctlog.Config{Mode: ctlog.ModeNone, AcceptUnlogged: true}},
		"external":  {c: ctlog.Config{Mode: ctlog.ModeExternal, Logs: []ctlog.ExternalConfig{{URL: "https://a", KeyFile: "k"}}}},
		"nothing":   {want: []string{"ctlog.mode"}},
		"typo":      {c: ctlog.Config{Mode: "embbedded"}, want: []string{"ctlog.mode"}},
		"unlogged":  {c: ctlog.Config{Mode: ctlog.ModeNone}, want: []string{"ctlog.accept_unlogged"}},
		"no fields": {c: ctlog.Config{Mode: ctlog.ModeEmbedded}, want: []string{"ctlog.embedded.directory", "ctlog.embedded.mark_file", "ctlog.embedded.url", "ctlog.embedded.key"}},
		"mark inside": {c: ctlog.Config{Mode: ctlog.ModeEmbedded, Embedded: ctlog.EmbeddedConfig{
			Directory: "/log", MarkFile: "/log/../log/mark", URL: "https://log.example", Key: "k"}}, want: []string{"ctlog.embedded.mark_file"}},
		"logs": {c: ctlog.Config{Mode: ctlog.ModeExternal, Logs: []ctlog.ExternalConfig{
			{URL: "https://a", KeyFile: "k"}, {URL: "https://a/"}, {URL: "http://b.example", KeyFile: "k"}, {URL: "https://u:p@c", KeyFile: "k"},
		}}, want: []string{"ctlog.logs[1].key_file", "ctlog.logs[1].url", "ctlog.logs[2].url", "ctlog.logs[3].url"}},
		"ways": {c: ctlog.Config{Mode: ctlog.ModeExternal, Logs: []ctlog.ExternalConfig{
			{URL: "https://a", KeyFile: "k", Address: "10.0.0.7:443", Proxy: "none"},
			{URL: "https://b", KeyFile: "k", Address: "10.0.0.7"},
			{URL: "https://c", KeyFile: "k", Proxy: "proxy.example:3128"},
			{URL: "https://d", KeyFile: "k", Proxy: "http://u:p@proxy.example:3128"},
			{URL: "https://e", KeyFile: "k", Proxy: "http://proxy.example:3128", Address: "10.0.0.7:443"},
			{URL: "https://f", KeyFile: "k", Proxy: "http://proxy.example:3128"},
		}}, want: []string{"ctlog.logs[1].address", "ctlog.logs[2].proxy", "ctlog.logs[3].proxy", "ctlog.logs[4].proxy"}},
		"plain http to this machine alone": {c: ctlog.Config{Mode: ctlog.ModeExternal, Logs: []ctlog.ExternalConfig{
			{URL: "http://127.0.0.1:6962", KeyFile: "k"}, {URL: "http://127.example.net", KeyFile: "k"}, {URL: "http://log.localhost", KeyFile: "k"},
		}}, want: []string{"ctlog.logs[1].url", "ctlog.logs[2].url"}},
		"a token is never sent over http": {c: ctlog.Config{Mode: ctlog.ModeExternal, Logs: []ctlog.ExternalConfig{
			{URL: "HTTP://127.0.0.1:6962", KeyFile: "k", Token: setting.Secret{File: "t"}}, {URL: "HTTPS://a", KeyFile: "k", Token: setting.Secret{File: "t"}},
		}}, want: []string{"ctlog.logs[0].token"}},
		"no logs": {c: ctlog.Config{Mode: ctlog.ModeExternal}, want: []string{"ctlog.logs"}},
	} {
		var f setting.Faults
		tt.c.Check("ctlog", &f)
		var got []string
		var faults *setting.FaultError
		if errors.As(f.Err(), &faults) {
			for _, line := range faults.Faults {
				path, _, _ := strings.Cut(line, ": ")
				got = append(got, path)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: faults at %q, want %q", name, got, tt.want)
		}
	}
	if origin := embedded.Origin(); origin != "log.example/2027" {
		t.Errorf("origin %q", origin)
	}
}
