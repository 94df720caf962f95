package embedded_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"golang.org/x/sys/unix"
)

// imageSize is that of the simulated disk, in MiB. The file is sparse.
const imageSize = 256

// losses is how often power is lost: MAYFLY_LOSSES, or 3.
func losses(t *testing.T) int {
	t.Helper()
	text := os.Getenv("MAYFLY_LOSSES")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MAYFLY_LOSSES=%q: want a number above zero", text)
	}
	return n
}

// TestPowerLoss writes to a log on a disk of its own, ext4 on a loop device, until
// the power goes: the writer is killed and what the device holds at that moment is
// copied, without anything that only the kernel's memory has. The machine that
// boots from the copy replays the journal and finds each SCT that was printed.
//
// The control is the same writer on the same file system under an overlay mounted
// volatile, which drops each fsync, O_SYNC and O_DSYNC on its way to ext4. There
// something must get lost, or else the test shows nothing. The same overlay without
// that option loses nothing, so that the syncs alone make the difference.
func TestPowerLoss(t *testing.T) {
	needDisks(t)
	n := losses(t)
	t.Run("plain", func(t *testing.T) { loseNothing(t, n, plain) })
	t.Run("overlay", func(t *testing.T) { loseNothing(t, 1, overlay) })
	t.Run("control without syncs", func(t *testing.T) {
		for i := range n {
			b, d := newDisk(t)
			place := volatile(t, b, d)
			promised := runAndKill(t, b)
			place(t, d.lose(t))
			what := b.missing(t, promised)
			if what == "" {
				t.Fatalf("loss %d: without a single sync all %d SCTs survived: the simulation proves nothing", i, len(promised))
			}
			t.Logf("loss %d: %d SCTs printed; afterwards: %s", i, len(promised), what)
		}
	})
}

// loseNothing loses the power n times, one after another on the same disk.
func loseNothing(t *testing.T, n int, mount mounting) {
	b, d := newDisk(t)
	b.o.SetLockWait(5 * time.Second)
	promised := make(map[uint64]string)
	var before checkpoint.Tree
	for i := range n {
		place := mount(t, b, d)
		for index, hash := range runAndKill(t, b) {
			if old, twice := promised[index]; twice && old != hash {
				t.Fatalf("loss %d: index %d was promised to two certificates", i, index)
			}
			promised[index] = hash
		}
		d = d.lose(t)
		place(t, d)
		l := b.openNow(t)
		before = checkPromises(t, b, l, promised, before)
		closeLog(t, l)
		if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
			t.Fatalf("loss %d: Verify: %v", i, err)
		}
	}
	t.Logf("power lost %d times, %d SCTs printed, none missing", n, len(promised))
}

// missing says what a log lost of its promises; nothing when it is whole.
func (b *bench) missing(t *testing.T, promised map[uint64]string) string {
	t.Helper()
	b.o.Create = false
	b.o.SetLockWait(5 * time.Second)
	l, err := embedded.Open(t.Context(), b.config, b.o)
	if err != nil {
		return "the log doesn't open: " + err.Error()
	}
	closeLog(t, l) // publishes what is there
	lost := 0
	for index, hash := range promised {
		e, err := read.EntryAt(t.Context(), b.path(), index)
		if err != nil || hex.EncodeToString(e.LeafHash[:]) != hash {
			lost++
		}
	}
	if lost == 0 {
		return ""
	}
	return fmt.Sprintf("%d of them are lost", lost)
}

// disk is a mounted image.
type disk struct{ image, at string }

// needDisks says where the simulation doesn't run.
func needDisks(t *testing.T) {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "mount", "cp", "cmp"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("POWER LOSS DID NOT RUN: %v", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("POWER LOSS DID NOT RUN: only root mounts a disk")
	}
	probe := t.TempDir()
	image := filepath.Join(probe, "image")
	run(t, "truncate", "--size=8M", image)
	run(t, "mkfs.ext4", "-q", "-F", image)
	at := filepath.Join(probe, "at")
	makeDir(t, at)
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Skipf("POWER LOSS DID NOT RUN: this machine mounts no loop device: %s", out)
	}
	unmount(t, at)
}

func newDisk(t *testing.T) (*bench, disk) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	run(t, "truncate", fmt.Sprintf("--size=%dM", imageSize), image)
	run(t, "mkfs.ext4", "-q", "-F", image)
	return newBench(t), mountDisk(t, image)
}

// mountDisk mounts an image, replaying its journal. The journal's timer is off
// (commit=300): what gets to the disk gets there because somebody asked.
func mountDisk(t *testing.T, image string) disk {
	t.Helper()
	d := disk{image: image, at: filepath.Join(t.TempDir(), "disk")}
	makeDir(t, d.at)
	run(t, "mount", "-o", "loop,commit=300", image, d.at)
	t.Cleanup(func() { unmount(t, d.at) })
	return d
}

func unmount(t *testing.T, at string) {
	t.Helper()
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Errorf("unmounting %s: %v", at, err)
	}
}

// lose copies what is on the device and mounts the copy. The writer is dead; the
// kernel may still write back by itself, so a copy counts when the device was the
// same before and after.
func (d disk) lose(t *testing.T) disk {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "image")
	for range 20 {
		run(t, "cp", "--sparse=always", "--reflink=never", d.image, copied)
		if exec.CommandContext(t.Context(), "cmp", "-s", d.image, copied).Run() == nil {
			return mountDisk(t, copied)
		}
	}
	t.Fatal("the disk doesn't come to rest")
	return disk{}
}

// mounting puts a bench's log onto a disk, and returns how to put it onto a copy
// of the disk.
type mounting func(t *testing.T, b *bench, d disk) (place func(*testing.T, disk))

func (b *bench) place(root string) {
	b.config.Directory = setting.Path(filepath.Join(root, "log"))
	b.config.MarkFile = setting.Path(filepath.Join(root, "mark"))
}

func plain(_ *testing.T, b *bench, d disk) func(*testing.T, disk) {
	b.place(d.at)
	return func(_ *testing.T, d disk) { b.place(d.at) }
}

func overlay(t *testing.T, b *bench, d disk) func(*testing.T, disk) { return overlaid(t, b, d, "") }

func volatile(t *testing.T, b *bench, d disk) func(*testing.T, disk) {
	return overlaid(t, b, d, ",volatile")
}

func overlaid(t *testing.T, b *bench, d disk, option string) func(*testing.T, disk) {
	t.Helper()
	for _, name := range []string{"lower", "upper", "work"} {
		makeDir(t, filepath.Join(d.at, name))
	}
	run(t, "sync", "--file-system", d.at) // the empty folders, as a disk has that was in use before
	at := filepath.Join(t.TempDir(), "overlay")
	makeDir(t, at)
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work%[2]s", d.at, option)
	if err := unix.Mount("overlay", at, "overlay", 0, options); err != nil {
		t.Skipf("THE CONTROL DID NOT RUN, so the rest proves nothing: no overlay with %q: %v", options, err)
	}
	t.Cleanup(func() { unmount(t, at) })
	b.place(at)
	return func(_ *testing.T, d disk) { b.place(filepath.Join(d.at, "upper")) }
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out.String())
	}
}
