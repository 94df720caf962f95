package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
)

// TestFrozenOwes: a log is held to what it promised after it was frozen as well. A
// certificate whose submission crossed the log's end is on record after the check that
// froze it, and a backup in a lost log's place may not have what was promised last.
func TestFrozenOwes(t *testing.T) {
	t.Parallel()
	_, file := shardedCA(t)
	began := time.Now()
	r, err := rotateAt(t, rotateOptions{file: file, force: true, at: began.Add(time.Minute).UTC().Format(time.RFC3339)}, began)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	f := freezing{config: c, file: file, now: r.next.Start}
	if err := f.find(nil); err != nil {
		t.Fatal(err)
	}
	if err := f.check(t.Context(), streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}); err != nil {
		t.Fatal(err)
	}
	if err := f.carryOut(); err != nil {
		t.Fatal(err)
	}
	spki, err := embedded.KeyOf(string(r.before.Directory))
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"type":"dev.mayfly.certificate.issued","time":%q,"data":{"serial":"5e41a1","log_id":"%x","leaf_hash":"%x","log_index":0,"sct_timestamp":%[1]q}}`+"\n",
		r.next.Start.Add(-time.Second).Format(time.RFC3339Nano), sha256.Sum256(spki), sha256.Sum256(nil))
	if err := os.WriteFile(string(c.Audit.Path), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = config.Load(file); err != nil {
		t.Fatal(err)
	}
	c.Server.HTTPAddress, c.Server.GRPCAddress, c.Server.MetricsAddress = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	registry := newRegistry()
	now := func() time.Time { return r.next.Start.Add(10 * time.Minute) }
	s, err := open(t.Context(), c, environment{now: now, logger: slog.New(slog.DiscardHandler), registry: registry}, registry, located{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := s.promises.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "mayfly_ctlog_promises_overdue" && m.GetLabel()[0].GetValue() == r.before.URL && m.GetGauge().GetValue() == 1 {
				return
			}
		}
	}
	t.Error("nobody says that the frozen log owes a certificate")
}

// TestFreezeMeanwhile: a log is taken out of the configuration by what it is, not by the
// place that it had before it was checked, which takes hours.
func TestFreezeMeanwhile(t *testing.T) {
	t.Parallel()
	_, file := shardedCA(t)
	now := time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC)
	for range 3 {
		r, err := rotateAt(t, rotateOptions{file: file, yearly: true}, now)
		if err != nil {
			t.Fatal(err)
		}
		now = r.next.Start.Add(time.Hour)
	}
	freeze := func(url string) *freezing {
		c, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		f := &freezing{config: c, file: file, now: now}
		if err := f.find([]string{url}); err != nil {
			t.Fatal(err)
		}
		if err := f.check(t.Context(), streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}); err != nil {
			t.Fatal(err)
		}
		return f
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	own := c.CTLog.Own()
	if err := freeze(own[0].URL).carryOut(); err != nil {
		t.Fatal(err)
	}
	one, other, again := freeze(own[1].URL), freeze(own[2].URL), freeze(own[2].URL)
	for _, f := range []*freezing{one, other} {
		if err := f.carryOut(); err != nil {
			t.Fatal(err)
		}
	}
	if err := again.carryOut(); err == nil {
		t.Error("a log is frozen twice")
	}
	if c, err = config.Load(file); err != nil {
		t.Fatal(err)
	}
	if left := c.CTLog.Own(); len(left) != 1 || left[0].URL != own[3].URL || len(c.CTLog.Frozen) != 3 {
		t.Errorf("%d logs are left, the first is %s, and %d are frozen; want %s alone and 3", len(left), left[0].URL, len(c.CTLog.Frozen), own[3].URL)
	}
}
