package inclusion_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// bench is a real log, a trail, and a monitor between them.
type bench struct {
	dir, trail string
	log        *embedded.Log
	ca         *ctlogtest.CA
	down       atomic.Bool
	now        time.Time
	monitor    *inclusion.Monitor
	registry   *prometheus.Registry
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{dir: t.TempDir(), ca: ctlogtest.NewCA(t), now: time.Now()}
	b.trail = filepath.Join(b.dir, "audit.jsonl")
	var err error
	b.log, err = embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(b.dir, "log")), MarkFile: setting.Path(filepath.Join(b.dir, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond,
	}, embedded.Options{Signer: ctlogtest.NewSigner(t), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if err := b.log.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	b.restart(t)
	return b
}

// restart makes another monitor over the same files, as a new process would.
func (b *bench) restart(t *testing.T) {
	t.Helper()
	b.registry = prometheus.NewRegistry()
	handler := remote.Local(b.log.Handler()).Transport
	var err error
	b.monitor, err = inclusion.New(inclusion.Options{
		Trail: promises.Follow(b.trail, nil), State: filepath.Join(b.dir, "audit.inclusion.json"), Interval: 5 * time.Millisecond,
		Now: func() time.Time { return b.now }, Metrics: b.registry,
		Logs: []remote.Log{{Description: b.log.Description(), URL: "http://log", MMD: time.Hour, Client: &http.Client{Transport: trip(func(r *http.Request) (*http.Response, error) {
			if b.down.Load() {
				return nil, errors.New("down")
			}
			return handler.RoundTrip(r)
		})}}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// submit logs n chains and returns their lines of the trail.
func (b *bench) submit(t *testing.T, n int, indexed bool) []byte {
	t.Helper()
	var lines bytes.Buffer
	for range n {
		chain := b.ca.Chain(t)
		sct, err := b.log.Submit(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := chain.LeafHash(sct)
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(b.line(t, sct, leaf, indexed))
	}
	return lines.Bytes()
}

// line is a record as the audit trail has it.
func (b *bench) line(t *testing.T, sct ctlog.SCT, leaf [32]byte, indexed bool) []byte {
	t.Helper()
	data := map[string]any{
		"serial": "0a", "log_id": hex.EncodeToString(sct.LogID[:]), "leaf_hash": hex.EncodeToString(leaf[:]),
		"sct_timestamp": time.UnixMilli(int64(sct.Timestamp)).UTC(),
	}
	if index, ok := sct.LeafIndex(); ok && indexed {
		data["log_index"] = index
	}
	raw, err := json.Marshal(map[string]any{"type": "dev.mayfly.certificate.issued", "time": b.now, "data": data})
	if err != nil {
		t.Fatal(err)
	}
	return append(raw, '\n')
}

func (b *bench) write(t *testing.T, lines []byte) {
	t.Helper()
	f, err := os.OpenFile(b.trail, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(lines)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// value is a metric's.
func (b *bench) value(t *testing.T, name string) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// settle looks until nothing is pending.
func (b *bench) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := b.monitor.Look(t.Context())
		if err == nil && b.value(t, "mayfly_ctlog_promises_pending") == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v are pending; %v", b.value(t, "mayfly_ctlog_promises_pending"), err)
		}
	}
}

func (b *bench) kept(t *testing.T, want float64) {
	t.Helper()
	if got := b.value(t, "mayfly_ctlog_promises_kept_total"); got != want {
		t.Errorf("%v promises were kept, want %v", got, want)
	}
}

// TestKeptPromiseIsForgotten: entries are found through the static API by their index, and through
// RFC 6962 by their hash, also across the trail's rotations.
func TestKeptPromiseIsForgotten(t *testing.T) {
	t.Parallel()
	for _, indexed := range []bool{true, false} {
		t.Run(fmt.Sprintf("indexed %v", indexed), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if err := b.monitor.Look(t.Context()); err != nil {
				t.Errorf("no trail yet: %v", err)
			}
			b.write(t, b.submit(t, 20, indexed))
			b.settle(t)
			b.kept(t, 20)
			for i := range 3 {
				b.write(t, b.submit(t, 2, indexed)) // not seen before the rotation
				if err := os.Rename(b.trail, filepath.Join(b.dir, fmt.Sprintf("audit-2026-11-22T12-00-0%d.000-size.jsonl", i))); err != nil {
					t.Fatal(err)
				}
				b.write(t, b.submit(t, 3, indexed))
			}
			b.settle(t)
			b.kept(t, 35)
		})
	}
}

// TestCompressedTrailIsRead: promises in compressed parts of the trail are kept in mind, over a
// restart and when parts are compressed faster than the monitor looks.
func TestCompressedTrailIsRead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rotate := func(i int) {
		t.Helper()
		to := filepath.Join(b.dir, fmt.Sprintf("audit-2026-11-22T12-00-0%d.000-size.jsonl", i))
		content, err := os.ReadFile(b.trail)
		if err != nil {
			t.Fatal(err)
		}
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err = w.Write(content)
		if err = errors.Join(err, w.Close(), os.WriteFile(to+".gz", z.Bytes(), 0o600), os.Chtimes(to+".gz", b.now, b.now), os.Remove(b.trail)); err != nil {
			t.Fatal(err)
		}
	}
	b.write(t, b.submit(t, 2, true))
	b.settle(t)
	b.now = b.now.Add(3 * time.Minute) // past what is read twice
	b.down.Store(true)
	b.write(t, b.submit(t, 3, true))
	rotate(1)
	b.write(t, b.submit(t, 4, true))
	rotate(2) // nobody has seen it by this name
	b.write(t, b.submit(t, 5, true))
	_ = b.monitor.Look(t.Context())
	_ = b.monitor.Look(t.Context())
	if got := b.value(t, "mayfly_ctlog_promises_pending"); got < 12 { // those of the part that was open may be there twice
		t.Errorf("%v are pending, want 12", got)
	}
	b.restart(t)
	_ = b.monitor.Look(t.Context())
	if got := b.value(t, "mayfly_ctlog_promises_pending"); got != 12 {
		t.Errorf("after a restart %v are pending, want 12", got)
	}
	b.down.Store(false)
	b.settle(t)
	b.kept(t, 12)
	if left, err := filepath.Glob(filepath.Join(b.dir, ".unpacked-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestFurtherSCTsAreFollowedToo: each SCT of a certificate in several logs is followed.
func TestFurtherSCTsAreFollowedToo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lines := bytes.Split(bytes.TrimSpace(b.submit(t, 3, true)), []byte("\n"))
	var records [3]struct {
		Type string         `json:"type"`
		Time time.Time      `json:"time"`
		Data map[string]any `json:"data"`
	}
	for i, line := range lines {
		if err := json.Unmarshal(line, &records[i]); err != nil {
			t.Fatal(err)
		}
	}
	records[0].Data["further_scts"] = []any{records[1].Data, records[2].Data, map[string]any{"log_id": "a stranger's"}}
	raw, err := json.Marshal(records[0])
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, append(raw, '\n'))
	b.settle(t)
	b.kept(t, 3)
}

// TestPartialLine: half a line is no record, and none is lost.
func TestPartialLine(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lines := b.submit(t, 2, true)
	b.write(t, append([]byte("rubbish\n{\"type\":\"dev.mayfly.certificate.issued\"\n"), lines[:len(lines)-20]...))
	b.settle(t)
	b.kept(t, 1)
	b.write(t, lines[len(lines)-20:])
	b.settle(t)
	b.kept(t, 2)
}

// TestOverdueRaisesTheAlarm: what a log owes is late after half of its merge delay, restarts or
// not, and is done with when the log has it.
func TestOverdueRaisesTheAlarm(t *testing.T) {
	t.Parallel()
	// The read paths of static-ct logs, and of those whose SCTs have no index.
	for name, indexed := range map[string]bool{"static-ct": true, "RFC 6962": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLate(t, indexed)
		})
	}
}

func testLate(t *testing.T, indexed bool) {
	t.Helper()
	b := newBench(t)
	b.write(t, b.submit(t, 3, indexed))
	b.settle(t)
	b.down.Store(true)
	b.now = b.now.Add(3 * time.Minute) // past what is read twice after a restart
	b.write(t, b.submit(t, 4, indexed))
	if err := b.monitor.Look(t.Context()); err == nil {
		t.Error("a log that is down is no news")
	}
	if late := b.value(t, "mayfly_ctlog_promises_overdue"); late != 0 {
		t.Errorf("%v overdue at once", late)
	}
	b.now = b.now.Add(29 * time.Minute)
	b.restart(t)
	_ = b.monitor.Look(t.Context())
	if got := b.value(t, "mayfly_ctlog_promises_overdue"); got != 4 {
		t.Errorf("%v overdue after more than half an hour, want 4", got)
	}
	b.down.Store(false)
	b.settle(t)
	b.kept(t, 4)
	if got := b.value(t, "mayfly_ctlog_promises_overdue"); got != 0 {
		t.Errorf("%v overdue when all is there", got)
	}
}

// TestFalseSCTRaisesTheAlarm: an SCT whose entry is another is found out and stays an alarm.
func TestFalseSCTRaisesTheAlarm(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, b.submit(t, 5, true))
	b.settle(t)
	chain := b.ca.Chain(t)
	sct, err := b.log.Submit(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, b.submit(t, 1, true))
	b.write(t, b.line(t, sct, [32]byte{1}, true))
	for b.value(t, "mayfly_ctlog_promises_broken") == 0 {
		if err := b.monitor.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.restart(t)
	for range 3 {
		if err := b.monitor.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.value(t, "mayfly_ctlog_promises_broken"); got != 1 {
		t.Errorf("%v broken after a restart, want 1", got)
	}
}

// TestRunEndsWithItsContext ends with its context.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, b.submit(t, 1, true))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.monitor.Run(ctx) }()
	for b.value(t, "mayfly_ctlog_promises_kept_total") == 0 {
		if t.Context().Err() != nil {
			t.Fatal("nothing was read")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestDamagedPartOfTheTrail: a compressed part that is damaged is counted and told once,
// doesn't keep the monitor from what comes after it, and is no ground to freeze a log on.
func TestDamagedPartOfTheTrail(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	part := filepath.Join(b.dir, "audit-2026-11-22T12-00-01.000-size.jsonl.gz")
	if err := errors.Join(os.WriteFile(part, []byte("no gzip at all"), 0o600), os.Chtimes(part, b.now, b.now)); err != nil {
		t.Fatal(err)
	}
	b.write(t, b.submit(t, 3, true))
	if err := b.monitor.Look(t.Context()); err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("the first look: %v, want it to name the part", err)
	}
	b.settle(t)
	for range 3 {
		if err := b.monitor.Look(t.Context()); err != nil {
			t.Errorf("a later look: %v", err)
		}
	}
	b.kept(t, 3)
	if got := b.value(t, "mayfly_ctlog_promises_unread_total"); got != 1 {
		t.Errorf("the damage was counted %v times", got)
	}
	_, err := inclusion.Pending(t.Context(), inclusion.Options{
		Trail: promises.Follow(b.trail, nil),
		Logs:  []remote.Log{{Description: b.log.Description(), URL: "http://log", Client: remote.Local(b.log.LocalReads())}},
	}, b.now.Add(-time.Hour))
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("what is owed is known with a damaged part: %v", err)
	}
}

// TestSameComplaintIsLoggedOnceAnHour: what stays wrong doesn't fill the log.
func TestSameComplaintIsLoggedOnceAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		m, err := inclusion.New(inclusion.Options{
			Trail: func(time.Time) inclusion.Trail { return unreadable{} }, State: filepath.Join(t.TempDir(), "state.json"),
			Logger: slog.New(slog.NewTextHandler(&text, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Minute)
		defer cancel()
		if err := m.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(text.String(), "permission denied"); got != 3 {
			t.Errorf("logged %d times in two and a half hours, want 3", got)
		}
	})
}

type unreadable struct{}

func (unreadable) Read(int, func(inclusion.Promise)) (time.Time, error) {
	return time.Time{}, os.ErrPermission
}
func (unreadable) Close() {}
