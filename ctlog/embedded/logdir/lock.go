package logdir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// ErrLocked means that another process, or this one, has the log open.
var ErrLocked = errors.New("the log's directory is in use by another process; only one may write to a log")

// Lock is an exclusive lock on a log's directory. It excludes a second opener in
// this process too.
type Lock struct {
	file *os.File
	path string
}

// Lock takes the lock of the directory, trying for as long as wait. The error is
// ErrLocked where the lock is held to the end.
func (d Dir) Lock(ctx context.Context, wait time.Duration) (l *Lock, err error) {
	err = untilFree(ctx, string(d), wait, func() (err error) {
		l, err = tryLock(d.Path(lockName))
		return err
	})
	return l, err
}

// InUse reports whether somebody has the log open.
func (d Dir) InUse() (bool, error) { return filelock.Held(d.Path(lockName)) }

// untilFree tries a lock for as long as wait. what names it in the error, which is
// ErrLocked where the lock is held to the end.
func untilFree(ctx context.Context, what string, wait time.Duration, try func() error) error {
	err := filelock.Retry(ctx, wait, try)
	if errors.Is(err, filelock.ErrHeld) {
		return fmt.Errorf("%s: %w", what, ErrLocked)
	}
	return err
}

func tryLock(path string) (*Lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log's lock: %w", err)
	}
	l := &Lock{file: file, path: path}
	if err = filelock.Take(file); err == nil {
		err = durable.OwnerOfFolder(file)
	}
	if err == nil {
		if err = l.Held(); err == nil {
			return l, nil
		}
		err = filelock.ErrHeld // the file was replaced between open and lock
	}
	return nil, errors.Join(err, file.Close())
}

// Held is an error when the file was removed or replaced, so that another
// process could have locked the new one.
func (l *Lock) Held() error {
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

// Release lets others take the lock.
func (l *Lock) Release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("releasing the log's lock: %w", err)
	}
	return nil
}
