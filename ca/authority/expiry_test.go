package authority

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// TestExpiry: warnings at the start and when 30 %, 10 % and nothing remain, each
// once; the metric has the end of every listed authority and of no other.
func TestExpiry(t *testing.T) {
	t.Parallel()
	old, err := Load(t.Context(), newLineage(t).write(t), LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a := *old
		a.notBefore, a.notAfter = time.Now(), time.Now().Add(100*day)
		var text catest.Lines
		registry := prometheus.NewRegistry()
		f, err := NewInForce(Options{
			Set:   &Set{Active: &a, Trusted: []Trusted{a.Trusted("y2026")}},
			Trail: audit.Trail{Now: time.Now, Logger: slog.New(slog.NewTextHandler(&text, nil))}, Metrics: registry,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.WatchExpiry(ctx) }()
		lines := 0
		for _, after := range []struct {
			wait time.Duration
			says string
			word string
		}{
			{time.Minute, "", ""},
			{69 * day, "", ""},
			{day, "percent_of_life_remaining=30", "less than 30 % of its life remains"},
			{day, "", "less than 30 % of its life remains"},
			{19 * day, "percent_of_life_remaining=10", "less than 10 % of its life remains"},
			{10 * day, "percent_of_life_remaining=0", "expired"},
			{day, "", "expired"},
		} {
			pass(t, after.wait)
			synctest.Wait()
			got := strings.FieldsFunc(text.String(), func(r rune) bool { return r == '\n' })
			if after.says != "" {
				lines++
			}
			if len(got) != lines || after.says != "" && !strings.Contains(got[lines-1], after.says) {
				t.Errorf("after %v more: %q; want %d lines, the last with %q", after.wait, got, lines, after.says)
			}
			if word := a.Trusted("y2026").Expiry(time.Now()); word != after.word {
				t.Errorf("after %v more: %q; want %q", after.wait, word, after.word)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		before := text.String()
		f.logExpiry(t.Context(), nil)
		if !strings.Contains(strings.TrimPrefix(text.String(), before), "percent_of_life_remaining=0") {
			t.Error("no warning at the start")
		}
		f.Use(Single(old))
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() != "mayfly_ca_authority_expiry_timestamp_seconds" {
				continue
			}
			if m := family.GetMetric(); len(m) != 1 || m[0].GetLabel()[0].GetValue() != DefaultName || m[0].GetGauge().GetValue() != float64(old.notAfter.Unix()) {
				t.Errorf("the metric of expiry: %v", m)
			}
		}
	})
}
