package ctlog_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

var (
	year2027 = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	year2028 = time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC)
	year2029 = time.Date(2029, 1, 1, 0, 0, 0, 0, time.UTC)
)

// shard is one log of a valid configuration.
func shard(name string, start, end time.Time) ctlog.EmbeddedConfig {
	c := ctlog.EmbeddedConfig{
		Directory: setting.Path("log-" + name), MarkFile: setting.Path("mark-" + name),
		URL: "https://ca.example.com/ctlog/" + name, Key: setting.KeyRef("file:" + name + ".pem"), Start: start, End: end,
	}
	c.SetDefaults()
	return c
}

// paths are where a check finds faults.
func paths(check func(*setting.Faults)) (found []string) {
	var f setting.Faults
	check(&f)
	var all *setting.FaultError
	if errors.As(f.Err(), &all) {
		for _, line := range all.Faults {
			path, _, _ := strings.Cut(line, ": ")
			found = append(found, path)
		}
	}
	return found
}

// TestShardsFollowEachOther: at each moment exactly one log takes certificates, and
// no two share anything.
func TestShardsFollowEachOther(t *testing.T) {
	t.Parallel()
	never := time.Time{}
	for name, tt := range map[string]struct {
		edit func(*ctlog.Config)
		want []string
	}{
		"three in a row":   {func(*ctlog.Config) {}, nil},
		"no first":         {func(c *ctlog.Config) { c.Embedded = ctlog.DefaultConfig().Embedded }, nil},
		"none":             {func(c *ctlog.Config) { c.Embedded, c.Shards = ctlog.EmbeddedConfig{}, nil }, []string{"ctlog.embedded.directory", "ctlog.embedded.mark_file", "ctlog.embedded.url", "ctlog.embedded.key"}},
		"an overlap":       {func(c *ctlog.Config) { c.Shards[1].Start = year2028 }, []string{"ctlog.shards[1].start"}},
		"a gap":            {func(c *ctlog.Config) { c.Shards[0].End = year2029.Add(-time.Second) }, []string{"ctlog.shards[1].start"}},
		"no end":           {func(c *ctlog.Config) { c.Embedded.End = never }, []string{"ctlog.embedded.end"}},
		"no start":         {func(c *ctlog.Config) { c.Shards[1].Start = never }, []string{"ctlog.shards[1].start"}},
		"out of order":     {func(c *ctlog.Config) { slices.Reverse(c.Shards) }, []string{"ctlog.shards[0].start", "ctlog.shards[0].end"}},
		"one URL":          {func(c *ctlog.Config) { c.Shards[1].URL = c.Embedded.URL + "/" }, []string{"ctlog.shards[1].url"}},
		"one key":          {func(c *ctlog.Config) { c.Shards[0].Key = c.Embedded.Key }, []string{"ctlog.shards[0].key"}},
		"one mark":         {func(c *ctlog.Config) { c.Shards[0].MarkFile = c.Embedded.MarkFile }, []string{"ctlog.shards[0].mark_file"}},
		"one in another":   {func(c *ctlog.Config) { c.Shards[0].Directory = c.Embedded.Directory + "/2028" }, []string{"ctlog.shards[0].directory"}},
		"a mark in a log":  {func(c *ctlog.Config) { c.Shards[0].MarkFile = c.Embedded.Directory + "/mark" }, []string{"ctlog.shards[0].mark_file"}},
		"another mode":     {func(c *ctlog.Config) { c.Mode, c.AcceptUnlogged = ctlog.ModeNone, true }, []string{"ctlog.shards", "ctlog.embedded"}},
		"a fault of a log": {func(c *ctlog.Config) { c.Shards[0].URL = "x" }, []string{"ctlog.shards[0].url"}},
	} {
		c := ctlog.DefaultConfig()
		c.Mode = ctlog.ModeEmbedded
		c.Embedded = shard("2027", never, year2028)
		c.Shards = []ctlog.EmbeddedConfig{shard("2028", year2028, year2029), shard("2029", year2029, never)}
		tt.edit(&c)
		if got := paths(func(f *setting.Faults) { c.Check("ctlog", f) }); !slices.Equal(got, tt.want) {
			t.Errorf("%s: faults at %q, want %q", name, got, tt.want)
		}
	}
}

// TestShardsReload: what a running service takes up, and what it doesn't.
func TestShardsReload(t *testing.T) {
	t.Parallel()
	now := year2028.Add(time.Hour) // the first has ended, the second is in use
	frozen := ctlog.FrozenConfig{URL: "https://ca.example.com/ctlog/2027/", KeyFile: "k"}
	freeze := func(c *ctlog.Config) { c.Embedded, c.Frozen = ctlog.EmbeddedConfig{}, []ctlog.FrozenConfig{frozen} }
	rotate := func(at time.Time) func(*ctlog.Config) {
		return func(c *ctlog.Config) {
			c.Shards[0].End = at
			c.Shards = append(c.Shards, shard("next", at, time.Time{}))
		}
	}
	for name, tt := range map[string]struct {
		edit func(*ctlog.Config)
		want []string
	}{
		"nothing":              {func(*ctlog.Config) {}, nil},
		"a rotation to come":   {rotate(year2029), nil},
		"a rotation now":       {rotate(now), []string{"ctlog.shards[0].end", "ctlog.shards[1].start"}},
		"the ended one frozen": {freeze, nil},
		"both":                 {func(c *ctlog.Config) { freeze(c); rotate(year2029)(c) }, nil},
		"moved into the list": {func(c *ctlog.Config) {
			c.Shards = slices.Insert(c.Shards, 0, c.Embedded)
			c.Embedded = ctlog.EmbeddedConfig{}
		}, nil},
		"the ended one gone": {func(c *ctlog.Config) { c.Embedded = ctlog.EmbeddedConfig{} }, []string{"ctlog"}},
		"the one in use frozen": {func(c *ctlog.Config) {
			c.Shards = nil
			c.Frozen = []ctlog.FrozenConfig{{URL: "https://ca.example.com/ctlog/2028"}}
		}, []string{"ctlog"}},
		"a past end moved":  {func(c *ctlog.Config) { c.Embedded.End = year2029 }, []string{"ctlog.embedded.end"}},
		"another directory": {func(c *ctlog.Config) { c.Shards[0].Directory = "x" }, []string{"ctlog.shards[0]"}},
		"another start":     {func(c *ctlog.Config) { c.Shards[0].Start = year2029 }, []string{"ctlog.shards[0]"}},
	} {
		c := ctlog.Config{Mode: ctlog.ModeEmbedded, Embedded: shard("2027", year2027, year2028), Shards: []ctlog.EmbeddedConfig{shard("2028", year2028, time.Time{})}}
		next := c
		next.Shards = slices.Clone(c.Shards)
		tt.edit(&next)
		if got := paths(func(f *setting.Faults) { c.CheckReload("ctlog", &next, now, f) }); !slices.Equal(got, tt.want) {
			t.Errorf("%s: faults at %q, want %q", name, got, tt.want)
		}
	}
}

// windowed is an honest log with a window, and a clock that can jump while it works.
func windowed(t *testing.T, url string, start, end time.Time, now func() time.Time) *ctlogtest.Honest {
	t.Helper()
	key := ctlogtest.NewSigner(t)
	spki := key.SPKI(t)
	return &ctlogtest.Honest{Signer: key, Now: now, About: ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: url, Start: start, End: end}}
}

// TestSwitchesByTheClock: logs with windows, external ones too, follow each other
// at the moment of the switch, and one that is asked in its last moment loses nothing.
func TestSwitchesByTheClock(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	var clock atomic.Pointer[time.Time]
	set := func(at time.Time) { clock.Store(&at) }
	now := func() time.Time { return *clock.Load() }
	set(year2028.Add(-time.Second))
	first, second := windowed(t, "https://a", year2027, year2028, now), windowed(t, "https://b", year2028, year2029, now)
	p := newPolicy(t, ctlog.Options{Now: now}, first, second)
	from := func() [32]byte {
		t.Helper()
		scts, err := p.Submit(t.Context(), ca.Chain(t))
		if err != nil || len(scts) != 1 {
			t.Fatalf("%d SCTs, %v", len(scts), err)
		}
		return scts[0].LogID
	}
	if from() != first.About.ID {
		t.Error("before the switch: not the first log")
	}
	set(year2028)
	if from() != second.About.ID {
		t.Error("at the switch: not the second log")
	}
	if got := p.CoveredUntil(); !got.Equal(year2029) {
		t.Errorf("covered until %s", got)
	}
	set(year2028.Add(-time.Nanosecond))
	first.Now = func() time.Time { set(year2028); return now() } // its answer is late by one moment
	if from() != second.About.ID {
		t.Error("during the switch: not the second log")
	}
	set(year2029)
	if _, err := p.Submit(t.Context(), ca.Chain(t)); fault.From(err).Reason != fault.LogUnavailable {
		t.Errorf("after all: %v", err)
	}
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready without a log")
	}
	third := windowed(t, "https://c", year2029, time.Time{}, now)
	use, err := p.Prepare([]ctlog.Log{second, third})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Descriptions()) != 2 || p.Descriptions()[0].ID != first.About.ID {
		t.Error("other logs are in use before it was asked for")
	}
	use()
	if from() != third.About.ID {
		t.Error("after the third was added: not the third log")
	}
	if _, err := p.Prepare([]ctlog.Log{third, third}); err == nil {
		t.Error("one key twice is taken")
	}
	if got := p.CoveredUntil(); !got.IsZero() || len(p.Descriptions()) != 2 {
		t.Errorf("covered until %s by %v", got, p.Descriptions())
	}
}

// TestEndOfALogIsNoFalseSCT: an SCT from outside of a log's window is a lie while the log's
// time goes on, whatever the time in it.
func TestEndOfALogIsNoFalseSCT(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	now := func() time.Time { return year2028.Add(-time.Second) }
	log := windowed(t, "https://a", year2027, year2028, func() time.Time { return year2028 })
	p := newPolicy(t, ctlog.Options{Now: now}, log)
	if _, err := p.Submit(context.WithoutCancel(t.Context()), ca.Chain(t)); err == nil || fault.From(err).Kind() != fault.Internal {
		t.Errorf("got %v, want an internal error", err)
	}
}
