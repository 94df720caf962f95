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
	_, err = f.Write(b)
	if err == nil {
		err = OwnerOfFolder(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
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

// TempPrefix begins the name of a file that is written and not in its place yet.
const TempPrefix = ".tmp-"

// Put writes a file, in the place of what is there under its name, and syncs it and its
// folder. A reader sees the old content or the new one, never a part. A symbolic link is
// replaced, not followed. The file is owned as OwnerAsFolder says. After an error the old
// content stands, unless only the last sync failed.
func Put(path string, b []byte, mode os.FileMode) error {
	return put(path, b, func(f *os.File) error {
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
	return put(path, b, func(f *os.File) error { return likeness(f, old) })
}

// put writes b beside its place, and renames it there once like has made the file what
// it should be.
func put(path string, b []byte, like func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix) // mode 0600
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
