package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
)

const (
	powerCuts  = 6       // moments at which the power goes
	cutImage   = 128     // MiB, of the disk
	cutPage    = 4 << 10 // what a disk writes whole or not at all
	cutClients = 8
	cutOrders  = 200
)

// recordedDisk is the file under a loop device. It remembers every write, and where
// the file system asked for all before it to be kept (a flush): enough to make what
// a disk with a volatile cache may hold after a power cut at any moment.
type recordedDisk struct {
	fs.MemRegularFile
	mu    sync.Mutex
	first []byte // before the first write
	past  []diskWrite
}

// diskWrite is a write, or a flush when it has no data.
type diskWrite struct {
	data []byte
	at   int64
}

// Writev records a write.
func (d *recordedDisk) Writev(ctx context.Context, _ fs.FileHandle, data [][]byte, at int64) (uint32, syscall.Errno) {
	return d.Write(ctx, nil, bytes.Join(data, nil), at)
}

// Write records a write.
func (d *recordedDisk) Write(ctx context.Context, h fs.FileHandle, data []byte, at int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	d.past = append(d.past, diskWrite{bytes.Clone(data), at})
	d.mu.Unlock()
	return d.MemRegularFile.Write(ctx, h, data, at)
}

// Fsync records a flush.
func (d *recordedDisk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.past = append(d.past, diskWrite{})
	return fs.OK
}

// now is the present moment.
func (d *recordedDisk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.past)
}

// cutAt is what the disk holds after the power went at a moment: all that came
// before the last flush, and of the rest each page or not, as chance has it. A disk
// that lies ignored every flush.
func (d *recordedDisk) cutAt(moment int, lies bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	flushed := 0
	for i, w := range d.past[:moment] {
		if w.data == nil && !lies {
			flushed = i
		}
	}
	image := bytes.Clone(d.first)
	for i, w := range d.past[:moment] {
		for from := 0; from < len(w.data); from += cutPage {
			page := w.data[from:min(from+cutPage, len(w.data))]
			if i < flushed || rand.IntN(2) == 0 {
				copy(image[w.at+int64(from):], page)
			}
		}
	}
	return image
}

// unrecorded are those of certificates, by their fingerprints, whose outcome isn't in
// the audit trail on a disk.
func unrecorded(t *testing.T, disk string, certificates [][]byte) (lost []string) {
	t.Helper()
	trail, _ := os.ReadFile(filepath.Join(disk, "audit", "audit.jsonl")) // what can't be read has nothing in it
	for _, der := range certificates {
		if sum := fmt.Sprintf("%x", sha256.Sum256(der)); !bytes.Contains(trail, []byte(`"fingerprint":"`+sum)) {
			lost = append(lost, sum)
		}
	}
	return lost
}

// TestPowerCut cuts the power of a running mayfly's disk at moments when somebody
// has just been given a certificate. The disk keeps what was flushed, and loses any
// part of the rest. A mayfly that starts from it has every certificate that was out in
// its log, and its outcome in the audit trail.
// The control is a disk that ignores flushes, with which log and audit trail must lose something.
func TestPowerCut(t *testing.T) { t.Run("log-power-cut", testPowerCut) }

func testPowerCut(t *testing.T) {
	issuer := startDev(t)
	var disk *recordedDisk
	var mounted string
	m := startServe(t, issuer.asIssuer(), func(t *testing.T, dir, config string) string {
		disk, mounted = newRecordedDisk(t)
		for _, name := range []string{"ctlog", "ctlog.mark", "audit"} {
			command(t, nil, "cp", "-a", filepath.Join(dir, name), mounted)
			config = strings.ReplaceAll(config, ": "+name+"\n", ": "+filepath.Join(mounted, name)+"\n")
		}
		config = strings.ReplaceAll(config, ": audit/", ": "+filepath.Join(mounted, "audit")+"/")
		command(t, nil, "sync", "--file-system", mounted)
		return strings.Replace(config, "    mark_file: ", "    min_free_mb: 1\n    mark_file: ", 1) // the disk is small
	})
	issued, moments := orderWhile(t, newOrderer(t, m, issuer.token(t)), disk)
	m.process.stop(t)
	config, err := os.ReadFile(filepath.Join(m.dir, "mayfly.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for range powerCuts {
		moment := moments[rand.IntN(len(moments))]
		var out [][]byte
		for i, der := range issued {
			if moments[i] <= moment {
				out = append(out, der)
			}
		}
		t.Run(fmt.Sprintf("after-%d-certificates", len(out)), func(t *testing.T) {
			at, err := boot(t, disk.cutAt(moment, false))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(m.dir, fmt.Sprintf("after-%d.yaml", moment))
			write(t, path, bytes.ReplaceAll(config, []byte(mounted), []byte(at)))
			again := serve(t, m.dir, path)
			again.logHolds(t, out)
			if lost := unrecorded(t, at, out); len(lost) > 0 {
				t.Errorf("the trail lacks the outcomes of %d certificates: %q", len(lost), lost)
			}
			command(t, nil, setting(t, "MAYFLY_BIN"), "log", "verify", // the issuers too
				"--dir", filepath.Join(at, "ctlog"), "--mark", filepath.Join(at, "ctlog.mark"))
		})
	}
	t.Run("control-that-ignores-flushes", func(t *testing.T) {
		at, err := boot(t, disk.cutAt(moments[len(moments)-1], true))
		if err != nil {
			t.Logf("the disk is lost: %v", err)
			return
		}
		if len(unrecorded(t, at, issued)) == 0 {
			t.Error("the trail lost nothing, so that the rest proves nothing")
		}
		said, err := attempt(t, nil, setting(t, "MAYFLY_BIN"), "log", "verify",
			"--dir", filepath.Join(at, "ctlog"), "--mark", filepath.Join(at, "ctlog.mark"))
		if err == nil {
			t.Errorf("nothing was lost, so that the rest proves nothing: %s", said)
		}
		t.Logf("the log is lost: %s", said)
	})
}

// orderWhile orders certificates from several clients, and notes with each at what
// moment of the disk it was out.
func orderWhile(t *testing.T, o *orderer, disk *recordedDisk) (issued [][]byte, moments []int) {
	t.Helper()
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(t.Context())
	for range cutClients {
		group.Go(func() error {
			for range cutOrders / cutClients {
				status, der, err := o.order(ctx)
				if err != nil || der == nil {
					return fmt.Errorf("status %d: %w", status, err)
				}
				moment := disk.now()
				mu.Lock()
				issued, moments = append(issued, der), append(moments, moment)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return issued, moments
}

// newRecordedDisk mounts an empty ext4 on a loop device over a recorded file.
func newRecordedDisk(t *testing.T) (*recordedDisk, string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skipf("POWER CUTS DID NOT RUN: they need root and /dev/fuse (%v)", err)
	}
	empty := filepath.Join(t.TempDir(), "image")
	command(t, nil, "truncate", fmt.Sprintf("--size=%dM", cutImage), empty)
	command(t, nil, "mkfs.ext4", "-q", "-F", empty)
	content, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	disk := &recordedDisk{first: content}
	disk.Data, disk.Attr.Mode = bytes.Clone(content), 0o600
	folder := t.TempDir()
	server, err := fs.Mount(folder, &oneFile{file: disk}, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, FsName: "recorded"}})
	if err != nil {
		t.Skipf("POWER CUTS DID NOT RUN: mounting: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	at, err := mountLoop(t, filepath.Join(folder, "image"))
	if err != nil {
		t.Skipf("POWER CUTS DID NOT RUN: %v", err)
	}
	return disk, at
}

// oneFile is a folder with an image in it.
type oneFile struct {
	fs.Inode
	file *recordedDisk
}

// OnAdd puts the image in.
func (o *oneFile) OnAdd(ctx context.Context) {
	o.AddChild("image", o.NewPersistentInode(ctx, o.file, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

// boot mounts what a disk holds, which replays its journal.
func boot(t *testing.T, image []byte) (at string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	write(t, path, image)
	return mountLoop(t, path)
}

// mountLoop mounts an image. The journal's timer is off: what is on the disk is
// there because somebody asked.
func mountLoop(t *testing.T, image string) (at string, err error) {
	t.Helper()
	at = filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "ext4", "-o", "loop,commit=300", image, at).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mount: %w: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return at, nil
}
