package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A command that root runs for a service that isn't root makes files which the service
// can't use. What this file makes therefore belongs to whoever owns the folder it is in.
// Only root can give files away: in all other processes nothing happens.

// asRoot is whether this process may give files away.
var asRoot = os.Geteuid() == 0

// MakeFolder makes a folder and those above it that are missing, each owned as the folder
// it is in. A folder that is there stays as it is.
func MakeFolder(path string, mode os.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := MakeFolder(filepath.Dir(path), mode); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil {
		if info, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && info.IsDir() {
			return nil // another was faster
		}
		return err
	}
	return OwnerAsFolder(path)
}

// OwnerAsFolder gives a new file or folder to the owner of the folder it is in. A
// symbolic link is left as it is.
func OwnerAsFolder(path string) error {
	if !asRoot {
		return nil
	}
	owner, err := os.Stat(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return err
	}
	return give(path, owner)
}

// OwnerOfFolder is OwnerAsFolder for a file that is open.
func OwnerOfFolder(f *os.File) error {
	if !asRoot {
		return nil
	}
	owner, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	return giveOpen(f, owner)
}

// OwnerAsFolderAll gives a new folder to the owner of the folder it is in, with
// everything that is in it.
func OwnerAsFolderAll(dir string) error {
	if !asRoot {
		return nil
	}
	owner, err := os.Stat(filepath.Dir(filepath.Clean(dir)))
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return give(path, owner)
	})
}

// give makes the owner and group of the file at a path those of another one.
func give(path string, other os.FileInfo) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(giveOpen(f, other), f.Close())
}

// giveOpen is give for an open file. One that has a second name is refused: whoever
// owns the folder may have put that name where the new file was, and would get a file
// of root's.
func giveOpen(f *os.File, other os.FileInfo) error {
	own, err := f.Stat()
	if err != nil {
		return err
	}
	uid, gid, differ := ownerOf(own, other)
	if !differ {
		return nil
	}
	if is, ok := own.Sys().(*syscall.Stat_t); ok && !own.IsDir() && is.Nlink > 1 {
		return fmt.Errorf("%s has a second name, and isn't given to the owner of its folder", f.Name())
	}
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("%s can't be given to the owner of its folder, user %d: run the command as that user: %w", f.Name(), uid, err)
	}
	return nil
}

// ownerOf is the owner and group of want, and whether those of own are others.
func ownerOf(own, want os.FileInfo) (uid, gid int, differ bool) {
	is, ok := own.Sys().(*syscall.Stat_t)
	other, known := want.Sys().(*syscall.Stat_t)
	if !ok || !known {
		return 0, 0, false
	}
	return int(other.Uid), int(other.Gid), is.Uid != other.Uid || is.Gid != other.Gid
}
