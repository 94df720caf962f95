package maintain

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// frozenAt is what the file says, for people.
type frozenAt struct {
	Size uint64    `json:"size"`
	Root []byte    `json:"root"`
	Time time.Time `json:"time"`
}

// Freeze makes the log in a directory one that nothing opens for writing again. r is
// what [Verify] just found; a log with entries that no checkpoint covers is refused.
// Freezing twice is no error.
//
// It doesn't take the log's lock, which a service holds until it has taken up the
// configuration without the log. What that one may still do changes no entry: the log
// has ended. Nothing else writes this file, and only what opens the log reads it.
func Freeze(dir string, r Report, now time.Time) error {
	if r.Unpublished > 0 {
		return fmt.Errorf("%d entries are in no checkpoint yet", r.Unpublished)
	}
	raw, err := json.MarshalIndent(frozenAt{Size: r.Size, Root: r.Root, Time: now.UTC()}, "", "  ")
	if err != nil {
		return fmt.Errorf("freezing the log: %w", err)
	}
	err = durable.WriteNew(logdir.Dir(dir).Path(logdir.FrozenName), append(raw, '\n'), 0o644)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("freezing the log: %w", err)
	}
	return nil
}

// KeyOf is the key that the log in a directory states as its own, in DER
// (SubjectPublicKeyInfo). It shows what is there, not that it is right.
func KeyOf(dir string) ([]byte, error) {
	owner, err := logdir.Dir(dir).Owner()
	return owner.Key, err
}
