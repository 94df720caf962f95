package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How long Open waits for another process to let go of the trail, and how often
// it looks: the lock of a killed process can outlive it for a moment.
const (
	lockWait = 5 * time.Second
	lockPoll = 50 * time.Millisecond
)

// acquire takes the lock file at path, which is created and stays, and waits for
// it as long as told. The lock is separate from the trail because rotation
// replaces the trail's file.
func acquire(path string, patience time.Duration) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the audit trail: %w", err)
	}
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for tries := patience / lockPoll; ; tries-- {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		busy := errors.Is(err, unix.EWOULDBLOCK)
		if !busy && !errors.Is(err, unix.EINTR) || tries <= 0 {
			if busy {
				err = errors.New("another process writes this audit trail; give each its own path")
			}
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		<-ticker.C
	}
}
