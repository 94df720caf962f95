package audit

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// Inspect says what [Open] would: whether the trail's files can be written. It only
// looks, and may run beside a service, whose hold of the trail inUse reports.
func Inspect(c Config) (inUse bool, err error) {
	path := string(c.Path)
	if _, err := c.Key(); err != nil {
		return false, err
	}
	for _, file := range []string{path, refusedPath(path)} {
		if err := usable(file); err != nil {
			return false, err
		}
		for _, needed := range []string{filepath.Dir(file), file} {
			if err := unix.Access(needed, unix.W_OK); err != nil && !errors.Is(err, unix.ENOENT) {
				return false, fmt.Errorf("%s can't be written by this user: %w; run it as the user of the service, or give it to that one", needed, err)
			}
		}
	}
	return filelock.Held(lockPath(path))
}

func lockPath(trail string) string { return trail + ".lock" }
