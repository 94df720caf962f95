package embedded_test

import (
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// TestReadinessGoesBeforeTheDiskIsFull: below the floor the log warns, and takes entries.
// Below the lower one it takes none and isn't ready, and all comes back with the room.
func TestReadinessGoesBeforeTheDiskIsFull(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var free atomic.Uint64
	free.Store(1 << 30)
	b.config.MinFreeMB = 100
	b.o.SetFree(func(string) (uint64, error) { return free.Load(), nil })
	registry := prometheus.NewRegistry()
	b.o.Metrics = registry
	l := b.open(t)
	if err := l.Ready(t.Context()); err != nil {
		t.Fatalf("with room: %v", err)
	}
	free.Store(100<<20 - 1)
	if err := l.Ready(t.Context()); !fault.Warns(err) || !strings.Contains(err.Error(), "min_free_mb") || strings.Contains(err.Error(), b.path()) {
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
	for _, low := range []uint64{25 << 20, 25<<20 - 1, 25 << 20} {
		free.Store(low)
		takes := low == 25<<20
		if err := l.Settled().Ready(t.Context()); err == nil || fault.Warns(err) != takes {
			t.Errorf("%d bytes: %v", low, err)
		}
		_, err := l.Submit(t.Context(), b.ca.Chain(t))
		if f, _ := errors.AsType[*fault.Error](err); takes && err != nil || !takes && (f == nil || f.Reason != fault.LogUnavailable) {
			t.Errorf("%d bytes: an entry: %v", low, err)
		}
		if !takes { // what was taken gets into the tree and under a checkpoint all the same
			b.published(t, 2)
		}
	}
	free.Store(100 << 20)
	if err := l.Settled().Ready(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
	b.published(t, 3)
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

// small puts the log onto a file system of its own of two MiB. It skips the test
// where only root may mount; TestFileSizeLimitReleasesNothing shows the same there.
func (b *bench) small(t *testing.T) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	makeDir(t, dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0755"); err != nil {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			t.Fatalf("mounting: %v", err)
		}
		t.Skipf("no file system of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	b.config.Directory = setting.Path(filepath.Join(dir, "log"))
}

// TestReadOnlyFoldersReleaseNothing turns folders of the log read-only under it, as kernels do after
// an I/O error, and back. What was taken until the log noticed is in it.
func TestReadOnlyFoldersReleaseNothing(t *testing.T) {
	for _, folder := range []string{".state", "tile"} {
		b := newBench(t)
		b.small(t)
		l := b.open(t)
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Fatal(err)
		}
		b.published(t, 1)
		at := b.path(folder)
		if err := unix.Mount(at, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("mounting: %v", err)
		}
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatalf("remounting read-only: %v", err)
		}
		taken := 1 + b.untilRefused(t, l)
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
		b.published(t, taken+1)
	}
}
