//go:build !windows

package durable

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const noFollow = syscall.O_NOFOLLOW

// OwnerOf says whose a file is, and how many names it has, where that is known.
func OwnerOf(info os.FileInfo) (uid, gid, names int, known bool) {
	is, known := info.Sys().(*syscall.Stat_t)
	if !known {
		return 0, 0, 0, false
	}
	return int(is.Uid), int(is.Gid), int(is.Nlink), true
}

// Writable is an error where this user can't write what is at path. What is missing is none.
func Writable(path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// FreeBytes is how much a writer without privileges may still put on the disk that
// holds the path.
func FreeBytes(path string) (uint64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	return s.Bavail * uint64(s.Bsize), err
}

func newFile(path string, mode os.FileMode) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

// newTemp makes a file that is its owner's alone until it gets its mode.
func newTemp(dir string, _ os.FileMode) (*os.File, error) { return os.CreateTemp(dir, TempPrefix) }
