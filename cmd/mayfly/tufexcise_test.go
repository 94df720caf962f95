package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestExciseCounts: what an excision hits is every certificate that could sign in the
// time, by the trail, and what can't be read of it; the gap is taken once that number is
// repeated.
func TestExciseCounts(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var trail strings.Builder
	record := func(kind, san, purpose string, from time.Time) {
		fmt.Fprintf(&trail, `{"type":"dev.mayfly.certificate.%s","time":%q,"data":{"san":%q,"purpose":%q,"not_before":%q,"not_after":%q}}`+"\n",
			kind, from.Format(time.RFC3339), san, purpose, from.Format(time.RFC3339), from.Add(10*time.Minute).Format(time.RFC3339))
	}
	record("issued", "long ago", "", noon.Add(-24*time.Hour))
	record("issued", "ends before", "", noon.Add(-10*time.Minute-time.Second))
	record("issued", "alice", "", noon.Add(-10*time.Minute)) // its last second is the first
	record("issued", "alice", "", noon.Add(time.Minute))
	record("intent", "alice", "", noon.Add(time.Minute))
	record("issued", "the CA itself", audit.PurposePrecertificateSigner, noon.Add(time.Minute))
	trail.WriteString("{\"type\":\"dev.mayfly.certificate.issued\",cut short\n")
	record("issued", "bob", "", noon.Add(time.Hour))
	record("issued", "begins after", "", noon.Add(time.Hour+time.Second))
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte(trail.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	times := trustroot.Gap{From: noon, To: noon.Add(time.Hour)}.String()
	for _, hits := range []int{-1, 3, 4} {
		c, out := &config.Config{Audit: audit.Config{Path: setting.Path(path)}}, new(bytes.Buffer)
		gaps, err := excision{times, hits}.agreed(out, c)
		if said := out.String(); !strings.Contains(said, times+": 4\n       2 alice\n") || !strings.Contains(said, "1 bob") || !strings.Contains(said, "1 a record that can't be read") {
			t.Errorf("counted: %s", said)
		}
		if agreed := hits == 4; (err == nil) != agreed || (len(gaps) == 1) != agreed || (len(c.Trust.Excised) == 1) != agreed || strings.Contains(out.String(), "trust.excised") != agreed {
			t.Errorf("--hits %d: %v, %v, %v", hits, gaps, c.Trust.Excised, err)
		}
	}
	c := &config.Config{Audit: audit.Config{Path: setting.Path(path + ".other")}}
	if _, err := (excision{times, 4}).agreed(new(bytes.Buffer), c); err == nil || !strings.Contains(err.Error(), "can't be counted") {
		t.Errorf("without a trail: %v", err)
	}
}
