// Package filelock takes exclusive locks of open files and folders, with flock(2); on Windows of
// files alone, with LockFileEx.
//
// A lock belongs to the open file: it excludes whoever opened the file a second
// time, in this process too, and closing the file gives it up. The kernel does so
// when the process dies. It guards nothing against a program that doesn't ask for it.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// ErrHeld means that the lock is taken, by another process or by this one.
var ErrHeld = errors.New("the lock is held by another process")

// poll is how often a lock that is held is tried again.
const poll = 25 * time.Millisecond

// Take takes the lock of f at once, or fails: with ErrHeld where it is taken.
func Take(f *os.File) error {
	for {
		switch err := lock(f.Fd()); {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, held):
			return ErrHeld
		case err != nil:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		default:
			return nil
		}
	}
}

// Held reports whether somebody holds the lock of the file at path. A file that isn't
// there isn't made, and nobody holds it.
func Held(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // which gives up what Take took
	if err := Take(f); !errors.Is(err, ErrHeld) {
		return false, err
	}
	return true, nil
}

// Retry calls take again while its error is ErrHeld, for as long as patience: the
// lock of a process that was killed can outlive it for a moment. It returns take's
// last error, or the context's when ctx ends first.
func Retry(ctx context.Context, patience time.Duration, take func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := take()
		left := time.Until(deadline)
		if !errors.Is(err, ErrHeld) || left <= 0 {
			return err
		}
		if err := wait.For(ctx, min(poll, left)); err != nil {
			return fmt.Errorf("waiting for the lock: %w", err)
		}
	}
}
