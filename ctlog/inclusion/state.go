package inclusion

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// state is what the monitor remembers over a restart. Losing it costs reading
// the trail again, never a promise.
type state struct {
	Until time.Time `json:"until"` // what was recorded before is in its log
}

// readState reads the file; without one the state begins at the time given.
func readState(path string, begin time.Time) (state, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Until: begin}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("inclusion: reading the monitor's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil || s.Until.IsZero() {
		return state{Until: begin}, nil //nolint:nilerr // cut short by a crash: the trail has it all
	}
	return s, nil
}

// writeState replaces the file.
func writeState(path string, s state) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("inclusion: %w", err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("inclusion: writing the monitor's state: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("inclusion: writing the monitor's state: %w", err)
	}
	return nil
}
