// Package promises reads from the audit trail what logs have promised: it stands
// between the trail and the monitor of inclusion, which know nothing of each other.
package promises

import (
	"cmp"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
)

// Follow gives the promises of the audit trail whose current file is at path. Lines
// that can't be read, such as a crash leaves, are passed over, and logged once each
// Read; a nil logger discards.
func Follow(path string, logger *slog.Logger) func(since time.Time) inclusion.Trail {
	logger = cmp.Or(logger, slog.New(slog.DiscardHandler))
	return func(since time.Time) inclusion.Trail {
		return &trail{Follower: audit.Follow(path, since, audit.Issued), logger: logger}
	}
}

type trail struct {
	*audit.Follower
	logger *slog.Logger
	latest time.Time // of the records that were read
}

// Read yields the promises of certificates that were issued.
func (t *trail) Read(limit int, yield func(inclusion.Promise)) (time.Time, error) {
	count, unreadable := 0, 0
	var first error
	defer func() {
		if unreadable > 0 {
			t.logger.Warn("lines of the audit trail can't be read: what they promise isn't checked", "lines", unreadable, "first", first)
		}
	}()
	for e, err := range t.Unread() {
		if line := (*audit.LineError)(nil); errors.As(err, &line) {
			if unreadable++; unreadable == 1 {
				first = err
			}
			continue
		}
		if err != nil {
			return t.latest, err
		}
		if e.Time.After(t.latest) {
			t.latest = e.Time
		}
		for _, sct := range e.SCTs() {
			log, err := hex.DecodeString(sct.LogID)
			leaf, err2 := hex.DecodeString(sct.LeafHash)
			if err != nil || err2 != nil || len(log) != 32 || len(leaf) != 32 {
				continue // not logged, or recorded before leaf hashes were
			}
			yield(inclusion.Promise{
				Log: [32]byte(log), Leaf: [32]byte(leaf), Index: sct.LogIndex, Serial: e.Serial, Promised: sct.SCTTimestamp, Recorded: e.Time,
			})
			count++
		}
		if count >= limit {
			break
		}
	}
	return t.latest, nil
}
