package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a taken lock is tried again.
const lockPoll = 25 * time.Millisecond

// ErrLocked means that another process, or this one, has the log open.
var ErrLocked = errors.New("the log's directory is in use by another process; only one may write to a log")

// dirLock is an exclusive lock on a log's directory. The kernel drops it when
// the process dies. It excludes a second opener in this process too, because
// flock belongs to the open file.
type dirLock struct {
	file *os.File
	path string
}

// lockDir takes the lock of the directory, trying for as long as wait: the lock
// of a process that was killed can outlive it for a moment.
func lockDir(ctx context.Context, dir string, wait time.Duration) (l *dirLock, err error) {
	err = untilFree(ctx, dir, wait, func() (err error) {
		l, err = tryLock(filepath.Join(dir, lockName))
		return err
	})
	return l, err
}

// untilFree tries a lock until it is taken, fails for another reason than being
// held, or the time is over. what names it in the error.
func untilFree(ctx context.Context, what string, wait time.Duration, try func() error) error {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	retry := time.NewTicker(lockPoll)
	defer retry.Stop()
	for {
		if err := try(); !errors.Is(err, ErrLocked) {
			return err
		}
		select {
		case <-retry.C:
		case <-deadline.C:
			return fmt.Errorf("%s: %w", what, ErrLocked)
		case <-ctx.Done():
			return fmt.Errorf("waiting for the log's lock: %w", ctx.Err())
		}
	}
}

// flock takes the exclusive lock of an open file, or answers ErrLocked.
func flock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		return ErrLocked
	case err != nil:
		return fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	return nil
}

func tryLock(path string) (*dirLock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log's lock: %w", err)
	}
	l := &dirLock{file: file, path: path}
	if err = flock(file); err == nil {
		if err = l.held(); err == nil {
			return l, nil
		}
		err = ErrLocked // the file was replaced between open and lock
	}
	return nil, errors.Join(err, file.Close())
}

// held is an error when the file was removed or replaced, so that another
// process could have locked the new one.
func (l *dirLock) held() error {
	ours, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("checking the log's lock: %w", err)
	}
	named, err := os.Stat(l.path)
	if err != nil {
		return fmt.Errorf("checking the log's lock: %w", err)
	}
	if !os.SameFile(ours, named) {
		return errors.New("the log's lock file was replaced while the log was open")
	}
	return nil
}

func (l *dirLock) release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("releasing the log's lock: %w", err)
	}
	return nil
}
