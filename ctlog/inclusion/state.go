package inclusion

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// state is what the monitor remembers over a restart. Losing it costs reading
// the trail again, never a promise.
type state struct {
	Until time.Time `json:"until"` // what was recorded before is in its log
}

// StateFile is where the monitor of the trail keeps its state: beside it.
func StateFile(trail string) string {
	return strings.TrimSuffix(trail, filepath.Ext(trail)) + ".inclusion.json"
}

// readState reads the file; without one all before the time given is well.
func readState(path string, begin time.Time) (time.Time, error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return begin, fmt.Errorf("inclusion: reading the monitor's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil || s.Until.IsZero() {
		return begin, nil //nolint:nilerr // cut short by a crash, or not there: the trail has it all
	}
	return s.Until, nil
}

// writeState replaces the file.
func writeState(path string, until time.Time) error {
	raw, err := json.Marshal(state{until})
	if err == nil {
		err = durable.Put(path, append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("inclusion: writing the monitor's state: %w", err)
	}
	return nil
}

// Pending reads the whole trail that is there, as far back as since and for as long before
// it as a clock may have been wrong, and the one log of o, and returns the serial numbers
// of certificates that the log promised and doesn't hold yet, or never will. It takes
// nobody's word for what was well before, and writes nothing. An error says what could
// not be read.
func Pending(ctx context.Context, o Options, since time.Time) ([]string, error) {
	o.State, o.Metrics = "", nil
	m, err := New(o)
	if err != nil {
		return nil, err
	}
	m.trail = o.Trail(since.Add(-lookBack))
	defer m.trail.Close()
	var pending []string
	for {
		read := 0
		if _, err := m.trail.Read(maxPending, func(p Promise) { read++; m.take(p) }); err != nil {
			return nil, err
		}
		for _, w := range m.logs {
			if err := m.ask(ctx, w); err != nil {
				return nil, err
			}
			for _, p := range w.pending {
				pending = append(pending, p.Serial)
			}
			w.pending = nil
		}
		if read == 0 {
			return pending, nil
		}
	}
}

// Promise is one SCT in a certificate that was issued.
type Promise struct {
	Log, Leaf [32]byte  // the log's id, and the entry's hash in its tree
	Index     *uint64   // of the entry; nil from a log without leaf indices
	Serial    string    // of the certificate
	Promised  time.Time // the SCT's timestamp
	Recorded  time.Time // when the certificate was issued
}

// Trail tells what is on record of promises, from a time on, the oldest first.
type Trail interface {
	// Read yields the promises that came since the last Read, or some of them once
	// there were more than limit. It returns the time of the last record that was
	// read. After an error the next Read goes on from there; a promise may be yielded
	// twice, and none is left out that can be read.
	Read(limit int, yield func(Promise)) (latest time.Time, err error)
	// Close ends the reading; a later Read may yield again what was read before.
	Close()
}
