package filelock

import "golang.org/x/sys/windows"

const held = windows.ERROR_LOCK_VIOLATION

// lock locks a byte that no file has: others can't read what is locked. Folders have no locks.
func lock(fd uintptr) error {
	return windows.LockFileEx(windows.Handle(fd), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{OffsetHigh: 1 << 30})
}
