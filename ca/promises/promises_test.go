package promises_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestFollow: what a real trail has on record of SCTs is read, in portions, and a
// line that can't be read is logged.
func TestFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	config := audit.DefaultConfig()
	config.Path = setting.Path(path)
	file, err := audit.Open(config, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(7)
	log, leaf := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	sct := audit.SCT{LogID: log, LeafHash: leaf, LogIndex: &index, SCTTimestamp: noon}
	for _, e := range []audit.Event{
		{Type: audit.Intent, Serial: "1"},
		{Type: audit.Issued, Serial: "1", Time: noon, SCT: sct, FurtherSCTs: []audit.SCT{{LogID: log}, {LogID: log, LeafHash: leaf}}},
		{Type: audit.Issued, Serial: "2", Time: noon.Add(time.Second)}, // not logged
		{Type: audit.Issued, Serial: "3", Time: noon.Add(time.Minute), SCT: sct},
	} {
		if err := file.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte("{\"type\":\"dev.mayfly.certificate.issued\"\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}

	var text bytes.Buffer
	trail := promises.Follow(path, slog.New(slog.NewTextHandler(&text, nil)))(time.Time{})
	defer trail.Close()
	for _, want := range []struct {
		serials []string
		latest  time.Time
	}{{[]string{"1", "1"}, noon}, {[]string{"3"}, noon.Add(time.Minute)}, {nil, noon.Add(time.Minute)}} {
		var got []string
		latest, err := trail.Read(1, func(p inclusion.Promise) {
			got = append(got, p.Serial)
			if p.Log[0] != 0xab || p.Leaf[31] != 0xcd || p.Index != nil && (*p.Index != index || !p.Promised.Equal(noon)) || p.Recorded.IsZero() {
				t.Errorf("%+v", p)
			}
		})
		if err != nil || !latest.Equal(want.latest) || !slices.Equal(got, want.serials) {
			t.Errorf("read %q to %v, %v; want %q to %v", got, latest, err, want.serials, want.latest)
		}
	}
	if !strings.Contains(text.String(), "line 1, can't be read") {
		t.Errorf("logged: %s", text.String())
	}
}
