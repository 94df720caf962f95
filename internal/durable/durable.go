// Package durable writes files that are on disk when the call returns.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteNew writes a file that must not exist yet (the error then wraps
// os.ErrExist) and syncs it and its folder. What a failure left half-written is
// removed. The file is owned as OwnerAsFolder says.
func WriteNew(path string, b []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := OwnerOfFolder(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder makes the names in a folder durable: fsync(2) of a file alone
// doesn't reach its name.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Replace puts b in the place of the file at path, which must exist, and syncs it
// and its folder. A reader sees the old content or the new one, never a part; the
// file keeps its mode and its owner. A symbolic link is replaced, not followed.
// After an error the old content stands, unless only the last sync failed.
func Replace(path string, b []byte) (err error) {
	old, err := os.Lstat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if removed := os.Remove(f.Name()); !errors.Is(removed, os.ErrNotExist) {
				err = errors.Join(err, removed)
			}
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = likeness(f, old)
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

// likeness gives f the owner and the mode of another file.
func likeness(f *os.File, other os.FileInfo) error {
	own, err := f.Stat()
	if err != nil {
		return err
	}
	if uid, gid, differ := ownerOf(own, other); differ {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	return f.Chmod(other.Mode().Perm())
}
