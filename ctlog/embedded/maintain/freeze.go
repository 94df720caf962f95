package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// frozenName is the file in a log's directory that says that the log is complete.
const frozenName = "frozen.json"

// ErrFrozen is the error of Open on a log that was frozen.
var ErrFrozen = errors.New("the log is frozen: it takes nothing any more; list it under ctlog.frozen")

// frozenAt is what the file says, for people.
type frozenAt struct {
	Size uint64    `json:"size"`
	Root []byte    `json:"root"`
	Time time.Time `json:"time"`
}

// Freeze makes the log in a directory one that nothing opens for writing again. r is
// what [Verify] just found; a log with entries that no checkpoint covers is refused.
// A process that has the log open is not stopped by it. Freezing twice is no error.
func Freeze(dir string, r Report, now time.Time) error {
	if r.Unpublished > 0 {
		return fmt.Errorf("%d entries are in no checkpoint yet", r.Unpublished)
	}
	raw, err := json.MarshalIndent(frozenAt{Size: r.Size, Root: r.Root, Time: now.UTC()}, "", "  ")
	if err != nil {
		return fmt.Errorf("freezing the log: %w", err)
	}
	err = durable.WriteNew(store{dir: dir}.path(frozenName), append(raw, '\n'), 0o644)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("freezing the log: %w", err)
	}
	return nil
}

// KeyOf is the key that the log in a directory states as its own, in DER
// (SubjectPublicKeyInfo). It shows what is there, not that it is right.
func KeyOf(dir string) ([]byte, error) {
	a, err := store{dir: dir}.about()
	return a.Key, err
}
