package embedded_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// TestD5Floor: readiness goes before the disk is full, and comes back with the room.
func TestD5Floor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var free atomic.Uint64
	free.Store(1 << 30)
	b.config.MinFreeMB = 100
	b.o.Free = func(string) (uint64, error) { return free.Load(), nil }
	registry := prometheus.NewRegistry()
	b.o.Metrics = registry
	l := b.open(t)
	if err := l.Ready(t.Context()); err != nil {
		t.Fatalf("with room: %v", err)
	}
	free.Store(100<<20 - 1)
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "min_free_mb") {
		t.Errorf("below the floor: %v", err)
	}
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("the disk takes entries still: %v", err)
	}
	if got := gauge(t, registry, "mayfly_ctlog_free_bytes"); got != 100<<20-1 {
		t.Errorf("free bytes %v", got)
	}
	if got := gauge(t, registry, "mayfly_ctlog_checkpoint_age_seconds"); !(got >= 0 && got < 600) {
		t.Errorf("checkpoint age %v", got)
	}
	free.Store(100 << 20)
	if err := l.Ready(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// small puts the log onto a file system of its own of two MiB. It reports false
// where only root may mount; TestD5FileSize shows the same there.
func (b *bench) small(t *testing.T) bool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	makeDir(t, dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0755"); err != nil {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			t.Fatalf("mounting: %v", err)
		}
		t.Logf("no file system of its own: %v", err)
		return false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	b.config.Directory = setting.Path(filepath.Join(dir, "log"))
	return true
}

// TestD5DiskFull fills a real file system: no SCT is released for what isn't on
// it (Sectigo Mammoth, 2024), and the log goes on by itself when there is room.
func TestD5DiskFull(t *testing.T) {
	b := newBench(t)
	if !b.small(t) {
		return
	}
	l := b.open(t)
	filler := filepath.Join(filepath.Dir(string(b.config.Directory)), "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	logged := uint64(0)
	for {
		_, err := l.Submit(t.Context(), b.ca.Chain(t))
		if err != nil {
			var f *fault.Error
			if !errors.As(err, &f) || f.Reason != fault.LogUnavailable {
				t.Fatalf("a full disk: %v", err)
			}
			break
		}
		if logged++; logged > 2000 {
			t.Fatal("the disk doesn't fill")
		}
	}
	before := b.key.Calls.Load()
	for range 3 {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
			break // a smaller file may still fit
		}
		if b.key.Calls.Load()-before > 1 { // a checkpoint may be signed meanwhile
			t.Error("a signature for an entry that isn't durable")
		}
	}
	remove(t, filler)
	if err := embeddedReady(t, l); err != nil {
		t.Fatalf("with room: %v", err)
	}
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("with room: %v", err)
	}
	closeLog(t, l)
	report, err := embedded.Verify(t.Context(), b.path(), embedded.VerifyOptions{MarkFile: string(b.config.MarkFile)})
	if err != nil || report.Size < logged+1 {
		t.Errorf("Verify: %+v, %v; %d SCTs were released", report, err, logged+1)
	}
}

// TestD5ReadOnly turns folders of the log read-only under it, as kernels do after
// an I/O error, and back.
func TestD5ReadOnly(t *testing.T) {
	for _, folder := range []string{".state", "tile"} {
		b := newBench(t)
		if !b.small(t) {
			return
		}
		l := b.open(t)
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Fatal(err)
		}
		at := b.path(folder)
		if err := unix.Mount(at, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("mounting: %v", err)
		}
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatalf("remounting read-only: %v", err)
		}
		for range 2 {
			if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
				t.Errorf("%s is read-only, and an SCT was released", folder)
			}
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Fatalf("unmounting: %v", err)
		}
		if err := embeddedReady(t, l); err != nil {
			t.Fatalf("%s is writable again: %v", folder, err)
		}
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Errorf("%s is writable again: %v", folder, err)
		}
	}
}

// TestFlippedBit: a bit that flips in the last, partial data tile (DigiCert Yeti,
// 2022) is copied on as the tile grows, and found before the tile is final: no SCT
// for what completes it, and no log that goes on.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 255)
	flip(t, b.path("tile", "data", "000.p", "255"))
	for range 2 {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
			t.Fatal("the log went on over a damaged entry")
		}
	}
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "entry") {
		t.Errorf("Ready: %v, want it to name the entry", err)
	}
}
