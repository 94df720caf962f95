package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
)

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
