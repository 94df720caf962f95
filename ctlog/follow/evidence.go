package follow

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// The kinds of contradictions.
const (
	kindFork     = "fork"     // two trees, of which neither begins with the other
	kindBack     = "back"     // a later tree is smaller
	kindWithheld = "withheld" // what was signed isn't shown
	kindEntry    = "entry"    // an entry has no form that a log may give it
)

var kinds = []string{kindFork, kindBack, kindWithheld, kindEntry}

// Contradiction is what no log may do: it goes against what the log signed.
type Contradiction struct {
	Kind string
	what string
}

func (c *Contradiction) Error() string { return c.what }

// Evidence is what is kept of a contradiction, in JSON: others can verify it with the
// log's key alone.
type Evidence struct {
	Kind     string    `json:"kind"`
	Log      string    `json:"log"`
	LogID    string    `json:"log_id"` // hex
	Found    time.Time `json:"found"`
	What     string    `json:"what"`
	Followed []byte    `json:"followed_checkpoint,omitempty"` // that was verified before
	Shown    []byte    `json:"shown_checkpoint,omitempty"`    // that contradicts it, or that the rest contradicts
	From     uint64    `json:"from,omitempty"`                // the first entry that was read then
	Root     []byte    `json:"root,omitempty"`                // over all entries up to those that were read
	Proof    [][]byte  `json:"proof,omitempty"`               // of consistency, which doesn't hold
	Leaf     []byte    `json:"leaf,omitempty"`                // the entry that can't be read
}

// maxEvidence is how many contradictions of a log are kept: one that is hostile could make one a look.
const maxEvidence = 100

// contradiction keeps the evidence, the same thing once, and returns the error.
func (f *Follower) contradiction(l *source, kind string, e Evidence, format string, args ...any) error {
	c := &Contradiction{Kind: kind, what: fmt.Sprintf(format, args...)}
	e.Kind, e.Log, e.LogID, e.What = kind, l.Description.URL, fmt.Sprintf("%x", l.Description.ID), c.what
	same := sha256.New()
	fmt.Fprintln(same, kind, e.LogID, e.From)
	if kind == kindFork || kind == kindBack { // each tree shows something else
		same.Write(e.Shown)
	}
	of := fmt.Sprintf("-%x-", l.Description.ID[:8])
	path := filepath.Join(f.o.Evidence, fmt.Sprintf("%s%s%x.json", kind, of, same.Sum(nil)[:8]))
	before, _ := os.ReadDir(f.o.Evidence) // of which there may be none yet
	if kept := slices.DeleteFunc(before, func(e os.DirEntry) bool { return !strings.Contains(e.Name(), of) }); len(kept) >= maxEvidence {
		return c
	}
	e.Found = f.o.Now().UTC()
	text, err := json.MarshalIndent(e, "", "  ")
	if err == nil {
		err = os.MkdirAll(f.o.Evidence, 0o700)
	}
	if err == nil {
		err = durable.WriteNew(path, append(text, '\n'), 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return errors.Join(c, fmt.Errorf("keeping the evidence: %w", err))
	}
	return c
}
