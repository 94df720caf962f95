package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// many records n events of each caller at once and fails the test on any error.
func many(t testing.TB, f *File, callers, n int, event func(id string) Event) {
	t.Helper()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range n {
				if err := f.Record(t.Context(), event(fmt.Sprintf("%d-%d", c, i))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestRefusalsGoToTheirOwnFile(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	f := openTest(t, c)
	for _, e := range []Event{
		{Type: Intent, Serial: "01"}, {Type: Issued, Serial: "01"}, {Type: Failed, Serial: "02"},
		{Type: Denied, Message: "bad token"}, {Type: Failed, Message: "issuer down"},
		{Type: Failed, Purpose: PurposeIssuing, Message: "signing CA down"}, // its intent has no serial yet
	} {
		if err := f.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	trail, refused := serials(readFile(t, string(c.Path))), serials(readFile(t, Files(string(c.Path))[1].Path))
	if len(trail) != 3 || trail["01"] != 2 || trail["02"] != 1 || trail["signing CA down"] != 1 {
		t.Errorf("trail = %v", trail)
	}
	if len(refused) != 2 || refused["bad token"] != 1 || refused["issuer down"] != 1 {
		t.Errorf("refused = %v", refused)
	}
	for _, path := range []string{string(c.Path), Files(string(c.Path))[1].Path} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
}

func TestEveryRecordIsInTheFileExactlyOnceAcrossRotations(t *testing.T) {
	t.Parallel()
	for _, compress := range []bool{false, true} {
		t.Run("compress "+strconv.FormatBool(compress), func(t *testing.T) {
			t.Parallel()
			c := testConfig(t)
			c.Rotation = Rotation{MaxSizeMB: 1, Compress: compress}
			f := openTest(t, c)
			const callers, n = 64, 40
			long := strings.Repeat("x", maxLong)
			many(t, f, callers, n, func(id string) Event { return Event{Type: Intent, Serial: id, SAN: long} })
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Dir(string(c.Path))
			if files, _ := filepath.Glob(filepath.Join(dir, "audit-*")); len(files) < 4 {
				t.Errorf("%d rotated files; the test must rotate", len(files))
			}
			records := read(t, filepath.Join(dir, "audit*"))
			found, ids := serials(records), map[string]bool{}
			for _, r := range records {
				if ids[r.ID] {
					t.Fatalf("id %s twice", r.ID)
				}
				ids[r.ID] = true
			}
			if len(found) != callers*n || len(records) != callers*n {
				t.Errorf("%d records of %d serials, want %d", len(records), len(found), callers*n)
			}
		})
	}
}

func TestAFloodOfRefusalsLeavesTheTrailAlone(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	c.Rotation = Rotation{MaxSizeMB: 1, MaxBackups: 1}
	c.RefusedRotation = Rotation{MaxSizeMB: 1, MaxBackups: 1}
	f := openTest(t, c)
	if err := f.Record(t.Context(), Event{Type: Issued, Serial: "kept"}); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", maxLong)
	many(t, f, 64, 40, func(id string) Event { return Event{Type: Denied, Message: id + long} })
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := serials(readFile(t, string(c.Path))); got["kept"] != 1 {
		t.Errorf("trail = %v", got)
	}
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(string(c.Path)), "audit.refused*"))
	if len(files) > 2 {
		t.Errorf("refusals are not bounded: %v", files)
	}
}

func TestAReopenedTrailGoesOn(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	for _, serial := range []string{"01", "02"} {
		f := openTest(t, c)
		if err := f.Record(t.Context(), Event{Type: Intent, Serial: serial}); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	records := readFile(t, string(c.Path))
	if len(records) != 2 || records[0].ID == records[1].ID {
		t.Errorf("%+v", records)
	}
}

func TestALineCutByACrashIsSetAside(t *testing.T) {
	t.Parallel()
	whole := `{"specversion":"1.0","id":"x-1","source":"s","type":"t","time":"2026-11-22T12:00:00Z","datacontenttype":"application/json","data":{}}` + "\n"
	for _, before := range []string{"", whole} {
		const torn = `{"specversion":"1.0","id":"x-2","sou`
		c := testConfig(t)
		if err := os.WriteFile(string(c.Path), []byte(before+torn), 0o600); err != nil {
			t.Fatal(err)
		}
		f := openTest(t, c)
		if err := f.Record(t.Context(), Event{Type: Intent, Serial: "01"}); err != nil {
			t.Fatal(err)
		}
		records := readFile(t, string(c.Path))
		records = records[strings.Count(before, "\n"):]
		if len(records) != 2 || records[0].Type != recovered.name() || records[0].Data["torn_line"] != torn || *records[1].Subject != "01" {
			t.Errorf("before %q: %+v", before, records)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(key, []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"no path", "", "no path"},
		{"missing folder", filepath.Join(dir, "none", "audit.jsonl"), "no such file"},
		{"a file as folder", filepath.Join(key, "audit.jsonl"), "not a"},
		{"a folder", dir, "not a regular file"},
		{"a device", "/dev/null", "not a regular file"},
		{"somebody else's file", key, "not an audit trail"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			c.Path = setting.Path(tt.path)
			f, err := Open(c, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, %v; want %q", f, err, tt.want)
			}
		})
	}
	if b, err := os.ReadFile(key); err != nil || string(b) != "-----BEGIN" {
		t.Errorf("the file that isn't ours was changed: %q, %v", b, err)
	}
	if _, err := os.Stat("/dev/null.lock"); err == nil {
		t.Error("a lock was left beside the device")
	}
}

func TestOneProcessATrail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl.lock")
	first, err := acquire(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := acquire(path, 0); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := acquire(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRecordRefuses(t *testing.T) {
	t.Parallel()
	f := openTest(t, testConfig(t))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantReason(t, f.Record(ended, Event{Type: Intent, Serial: "01"}), fault.ClientGone)
	wantReason(t, f.Record(t.Context(), Event{Type: "forged"}), fault.ReasonInternal)
	if err := f.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantReason(t, f.Record(t.Context(), Event{Type: Intent, Serial: "01"}), fault.AuditUnavailable)
	wantReason(t, f.Ready(t.Context()), fault.AuditUnavailable)
}

func wantReason(t testing.TB, err error, want fault.Reason) {
	t.Helper()
	var e *fault.Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Errorf("got %v, want reason %s", err, want)
	}
}

func TestMetricsCountByTypeAndOutcome(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	f, err := Open(testConfig(t), Options{Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Event{{Type: Intent, Serial: "01"}, {Type: Probed, Serial: "01"}, {Type: Denied}, {Type: Denied}} {
		if err := f.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP mayfly_audit_records_total Audit records by type (intent, issued, denied, failed, probed, admin) and outcome (durable, failed, overflow).
# TYPE mayfly_audit_records_total counter
mayfly_audit_records_total{outcome="durable",type="denied"} 2
mayfly_audit_records_total{outcome="durable",type="intent"} 1
mayfly_audit_records_total{outcome="durable",type="probed"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "mayfly_audit_records_total"); err != nil {
		t.Error(err)
	}
	if _, err := Open(testConfig(t), Options{Metrics: reg}); err == nil {
		t.Error("metrics registered twice without an error")
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			f := openTest(b, testConfig(b))
			e := full()
			b.ReportAllocs()
			work := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for range work {
						if err := f.Record(b.Context(), e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			began := cpuTime(b)
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64((cpuTime(b)-began).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime is what the process has used so far, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
