package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// lockWait is how long Open waits for another process to let go of the trail.
const lockWait = 5 * time.Second

// acquire takes the lock file at path, which is created and stays, and waits for
// it as long as told. The lock is separate from the trail because rotation
// replaces the trail's file.
func acquire(path string, patience time.Duration) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the audit trail: %w", err)
	}
	take := func() error { return filelock.Take(f) }
	err = filelock.Retry(context.Background(), patience, take) //nolint:forbidigo // Open has no context; the wait is bounded
	if err == nil {
		return f, nil
	}
	if errors.Is(err, filelock.ErrHeld) {
		err = fmt.Errorf("locking %s: another process writes this audit trail; give each its own path", path)
	}
	return nil, errors.Join(err, f.Close())
}
