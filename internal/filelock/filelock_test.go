package filelock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/filelock"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	first, second := open(t, path), open(t, path)
	if err := filelock.Take(first); err != nil {
		t.Fatal(err)
	}
	if err := filelock.Take(second); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("the second holder: %v, want ErrHeld", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := filelock.Take(second); err != nil {
		t.Errorf("after the first let go: %v", err)
	}
	if err := filelock.Take(first); err == nil || errors.Is(err, filelock.ErrHeld) {
		t.Errorf("a closed file: %v", err)
	}
}

func TestFoldersAreLockedToo(t *testing.T) {
	t.Parallel()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if err := filelock.Take(dir); err != nil {
		t.Fatal(err)
	}
}

// TestRetry: it asks until the lock is free, another fault shows, the patience
// ends or the context does.
func TestRetry(t *testing.T) {
	t.Parallel()
	other := errors.New("other")
	for name, tt := range map[string]struct {
		held     time.Duration
		after    error
		patience time.Duration
		deadline time.Duration
		took     time.Duration // at most 25 ms more
		want     error
	}{
		"free at once":      {patience: 0, deadline: time.Hour},
		"held, no patience": {held: time.Second, deadline: time.Hour, want: filelock.ErrHeld},
		"freed in time":     {held: time.Second, patience: time.Minute, deadline: time.Hour, took: time.Second},
		"held too long":     {held: time.Hour, patience: time.Minute, deadline: time.Hour, took: time.Minute, want: filelock.ErrHeld},
		"another fault":     {held: time.Second, after: other, patience: time.Minute, deadline: time.Hour, took: time.Second, want: other},
		"the context ends":  {held: time.Hour, patience: time.Hour, deadline: time.Minute, took: time.Minute, want: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
				defer cancel()
				began := time.Now()
				err := filelock.Retry(ctx, tt.patience, func() error {
					if time.Since(began) < tt.held {
						return filelock.ErrHeld
					}
					return tt.after
				})
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if took := time.Since(began); took < tt.took || took > tt.took+25*time.Millisecond {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}
