// Package durable writes files that are on disk when the call returns.
package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// WriteNew writes a file that must not exist yet (the error then wraps
// os.ErrExist) and syncs it and its folder. What a failure left half-written is
// removed. The file is owned as OwnerAsFolder says.
func WriteNew(path string, b []byte, mode os.FileMode) error {
	f, err := newFile(path, mode)
	if err != nil {
		return err
	}
	return finish(f, b, OwnerOfFolder, path)
}

// SyncFolder makes the names in a folder durable: fsync(2) of a file alone
// doesn't reach its name. Windows has no such call: NTFS keeps a journal of names.
func SyncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// TempPrefix begins the name of a file that is written and not in its place yet.
const TempPrefix = ".tmp-"

// Put writes a file, in the place of what is there under its name, and syncs it and its
// folder. A reader sees the old content or the new one, never a part. A symbolic link is
// replaced, not followed. The file is owned as OwnerAsFolder says. After an error the old
// content stands, unless only the last sync failed.
func Put(path string, b []byte, mode os.FileMode) error {
	return put(path, b, mode, func(f *os.File) error {
		if err := f.Chmod(mode); err != nil {
			return err
		}
		return OwnerOfFolder(f)
	})
}

// Replace is Put for a file that must exist, and keeps its mode and its owner.
func Replace(path string, b []byte) error {
	old, err := os.Lstat(path)
	if err != nil {
		return err
	}
	return put(path, b, old.Mode().Perm(), func(f *os.File) error {
		own, err := f.Stat()
		if err != nil {
			return err
		}
		if uid, gid, differ := ownerOf(own, old); differ {
			if err := f.Chown(uid, gid); err != nil {
				return err
			}
		}
		return f.Chmod(old.Mode().Perm())
	})
}

// put writes b beside its place, and puts it there once like has made the file what it
// should be.
func put(path string, b []byte, mode os.FileMode, like func(*os.File) error) error {
	f, err := newTemp(filepath.Dir(path), mode)
	if err != nil {
		return err
	}
	return finish(f, b, like, path)
}

// finish fills a new file and puts it at a path, where it may be already. After an error
// it is gone, unless only the last sync failed.
func finish(f *os.File, b []byte, like func(*os.File) error, path string) (err error) {
	defer func() {
		if err != nil {
			if removed := os.Remove(f.Name()); !errors.Is(removed, os.ErrNotExist) {
				err = errors.Join(err, removed)
			}
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = like(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// OpenPlain opens a plain file to read it. A pipe or a device in its place is an error,
// and holds nobody up.
func OpenPlain(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s isn't a plain file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadPlain reads a plain file of at most so many bytes, opened by OpenPlain.
func ReadPlain(path string, most int64) ([]byte, error) {
	f, err := OpenPlain(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return b, err
}

// OfTheSystem reports whether a name in a folder is one that file systems, desktops and
// platforms put there by themselves: lost+found of ext4, snapshots, the links that
// Kubernetes mounts by. Whoever looks for what a folder holds passes over them, and
// leaves them as they are.
func OfTheSystem(name string) bool {
	return strings.HasPrefix(name, "..") || strings.HasPrefix(name, ".nfs") || strings.HasPrefix(name, ".Trash") ||
		strings.HasPrefix(name, "._") || slices.Contains(systemNames, name)
}

var systemNames = []string{
	"lost+found", ".snapshot", ".snapshots", ".zfs", // ext4, NetApp, btrfs, ZFS
	".DS_Store", ".fseventsd", ".Spotlight-V100", ".TemporaryItems", // macOS
	"Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN", "@eaDir", // Windows, Synology
}
