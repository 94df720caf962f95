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
// it is in, and syncs their names. A folder that is there stays as it is.
func MakeFolder(path string, mode os.FileMode) error {
	missing := "" // the first of them
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = at
	}
	if err := os.MkdirAll(path, mode); err != nil || missing == "" {
		return err
	}
	if err := OwnerAsFolderAll(missing); err != nil {
		return err
	}
	for made := filepath.Clean(path); ; made = filepath.Dir(made) {
		if err := SyncFolder(filepath.Dir(made)); err != nil || made == missing {
			return err
		}
	}
}

// OwnerAsFolder gives a new file or folder to the owner of the folder it is in. A
// symbolic link is left as it is.
func OwnerAsFolder(path string) error {
	if !asRoot {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(OwnerOfFolder(f), f.Close())
}

// OwnerAsFolderAll gives a new folder to the owner of the folder it is in, with
// everything that is in it: each after the folder above it.
func OwnerAsFolderAll(dir string) error {
	if !asRoot {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return OwnerAsFolder(path)
	})
}

// OwnerOfFolder is OwnerAsFolder for a file that is open. One that has a second name is
// refused: whoever owns the folder may have put that name where the new file was, and
// would get a file of root's.
func OwnerOfFolder(f *os.File) error {
	if !asRoot {
		return nil
	}
	folder, err := os.Stat(filepath.Dir(filepath.Clean(f.Name())))
	if err != nil {
		return err
	}
	own, err := f.Stat()
	if err != nil {
		return err
	}
	uid, gid, differ := ownerOf(own, folder)
	if !differ {
		return nil
	}
	if _, _, names, _ := OwnerOf(own); !own.IsDir() && names > 1 {
		return fmt.Errorf("%s has a second name, and isn't given to the owner of its folder", f.Name())
	}
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("%s can't be given to the owner of its folder, user %d: run the command as that user: %w", f.Name(), uid, err)
	}
	return nil
}

// ownerOf is the owner and group of want, and whether those of own are others.
func ownerOf(own, want os.FileInfo) (uid, gid int, differ bool) {
	isUID, isGID, _, _ := OwnerOf(own)
	uid, gid, _, _ = OwnerOf(want)
	return uid, gid, isUID != uid || isGID != gid
}
