package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// service is who owns the folder that root makes files in.
const service = 4242

// Whatever root makes in a service's folder is the service's, and what was there stays.
func TestNewFilesBelongToTheOwnerOfTheirFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	dir := t.TempDir()
	before := filepath.Join(dir, "before")
	if err := os.WriteFile(before, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, service, service+1); err != nil {
		t.Fatal(err)
	}
	file, folder, tree := filepath.Join(dir, "new"), filepath.Join(dir, "a", "b"), filepath.Join(dir, "tree")
	if err := durable.WriteNew(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is missing
		if err := durable.MakeFolder(folder, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(tree, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	secret, linked := filepath.Join(t.TempDir(), "secret"), filepath.Join(dir, "linked")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(tree, "below", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(secret, linked); err != nil {
		t.Skip(err) // another file system
	}
	if err := durable.OwnerAsFolder(linked); err == nil {
		t.Error("a second name of another file was given away")
	}
	if err := durable.OwnerAsFolderAll(tree); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, folder, filepath.Dir(folder), tree, filepath.Join(tree, "below")} {
		if uid, gid := owner(t, path); uid != service || gid != service+1 {
			t.Errorf("%s belongs to %d:%d, want %d:%d", path, uid, gid, service, service+1)
		}
	}
	for _, path := range []string{before, secret} {
		if uid, _ := owner(t, path); uid != 0 {
			t.Errorf("%s was there before, and belongs to %d now", path, uid)
		}
	}
	if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestMakeFolderRefusesAFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if err := durable.MakeFolder(path, 0o700); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v, want ENOTDIR", path, err)
		}
	}
}

func owner(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	is, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner is known here")
	}
	return int(is.Uid), int(is.Gid)
}
