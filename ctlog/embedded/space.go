package embedded

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// freeBytes is how much a writer without privileges may still put on the disk
// that holds the path.
func freeBytes(path string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, fmt.Errorf("asking how much of the log's disk is free: %w", err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// room is an error when less of the log's disk is free than the configuration's
// floor. Entries are taken even then, for as long as the disk takes them: this is
// the warning that comes before they aren't.
func (l *Log) room() error {
	if l.config.MinFreeMB <= 0 {
		return nil
	}
	free, err := l.o.free(string(l.dir))
	if err != nil {
		return err
	}
	if floor := uint64(l.config.MinFreeMB) << 20; free < floor {
		return fmt.Errorf("the log's disk has %d MiB free, less than the floor of %d MiB (min_free_mb)", free>>20, l.config.MinFreeMB)
	}
	return nil
}
