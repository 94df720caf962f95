package conformance

import (
	"os"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faultDisk is a folder behind a real file system (FUSE) that answers chosen
// calls of the kernel with EIO, as a failing disk does.
type faultDisk struct {
	fuse.RawFileSystem // passes everything on to the folder

	mu    sync.Mutex
	calls string // which calls fail; empty: none
	skip  int    // how many of them pass first
	left  int    // how many fail then; below 0: all
	hits  int    // how many failed
}

// newFaultDisk mounts dir at the empty folder at. It skips the test where the
// machine has no FUSE.
func newFaultDisk(t *testing.T, dir, at string) *faultDisk {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skipf("STORAGE FAULTS DID NOT RUN: they need root and /dev/fuse (%v)", err)
	}
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	// No caches in the kernel: each call reaches the disk.
	d := &faultDisk{RawFileSystem: fs.NewNodeFS(root, &fs.Options{})}
	server, err := fuse.NewServer(d, at, &fuse.MountOptions{
		DirectMount: true, FsName: "faultdisk", Name: "faultdisk",
		DisabledCapabilities: fuse.CAP_PASSTHROUGH, // reads and writes come by here
	})
	if err != nil {
		t.Skipf("STORAGE FAULTS DID NOT RUN: mounting: %v", err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return d
}

// breaks makes the calls fail: the next skip of them pass, then left fail (below 0: all).
func (d *faultDisk) breaks(calls string, skip, left int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls, d.skip, d.left, d.hits = calls, skip, left, 0
}

// mends ends the fault and tells how often it struck.
func (d *faultDisk) mends() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = ""
	return d.hits
}

func (d *faultDisk) struck() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hits
}

func (d *faultDisk) fails(call string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls != call || d.left == 0 {
		return false
	}
	if d.skip > 0 {
		d.skip--
		return false
	}
	d.left--
	d.hits++
	return true
}

// The calls that can fail.

func (d *faultDisk) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if d.fails("create") {
		return fuse.EIO
	}
	return d.RawFileSystem.Create(cancel, in, name, out)
}

func (d *faultDisk) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if d.fails("write") {
		return 0, fuse.EIO
	}
	return d.RawFileSystem.Writev(cancel, in, data)
}

func (d *faultDisk) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if d.fails("fsync") {
		return fuse.EIO
	}
	return d.RawFileSystem.Fsync(cancel, in)
}

func (d *faultDisk) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if d.fails("fsync of a folder") {
		return fuse.EIO
	}
	return d.RawFileSystem.FsyncDir(cancel, in)
}

func (d *faultDisk) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if d.fails("rename") {
		return fuse.EIO
	}
	return d.RawFileSystem.Rename(cancel, in, from, to)
}

func (d *faultDisk) Read(cancel <-chan struct{}, in *fuse.ReadIn, to []byte) (fuse.ReadResult, fuse.Status) {
	if d.fails("read") {
		return nil, fuse.EIO
	}
	return d.RawFileSystem.Read(cancel, in, to)
}
