package follow

import (
	"bytes"
	"context"
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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/metric"
)

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// look follows the log to its present end.
func (f *Follower) look(ctx context.Context, l *source) error {
	at, err := f.o.Keeper.Position(ctx, l.Description)
	if err != nil {
		return err
	}
	f.at(l, at.Size, 0)
	tree, err := ranges.NewRange(0, at.Size, slices.Clone(at.Hashes))
	if err != nil {
		return fmt.Errorf("the position in the store: %w", err)
	}
	head, err := l.Head(ctx)
	if err != nil {
		return err
	}
	f.at(l, at.Size, head.Size)
	older, err := f.compare(ctx, l, at, head)
	if err != nil || older {
		return err
	}
	for tree.End() < head.Size {
		if err := f.batch(ctx, l, tree, head); err != nil {
			return err
		}
		f.at(l, tree.End(), head.Size)
	}
	return nil
}

// compare shows that the log's head continues the one that was verified last. older is
// true where it is one from before, as a cache or a replica of the log has: there is
// nothing to do then.
func (f *Follower) compare(ctx context.Context, l *source, at Position, head remote.Head) (older bool, err error) {
	if at.Checkpoint == nil {
		return false, nil
	}
	last, err := checkpoint.Open(at.Checkpoint, l.Verifier)
	if err != nil {
		return false, fmt.Errorf("the checkpoint in the store: %w", err)
	}
	e := Evidence{Followed: at.Checkpoint, Shown: head.Raw}
	switch {
	case head.Size < last.Size && head.Timestamp <= last.Timestamp:
		return true, nil
	case head.Size < last.Size:
		return false, f.contradiction(l, kindBack, e, "the log has %d entries, and had %d before", head.Size, last.Size)
	case head.Size == last.Size && !bytes.Equal(head.Root, last.Root):
		return false, f.contradiction(l, kindFork, e, "the log has two trees of %d entries", head.Size)
	case head.Size == last.Size || last.Size == 0:
		return false, nil
	}
	return false, f.consistent(ctx, l, last.Tree, head, e)
}

// consistent shows that tree is a beginning of the one that head signed.
func (f *Follower) consistent(ctx context.Context, l *source, tree checkpoint.Tree, head remote.Head, e Evidence) error {
	if tree.Size == head.Size {
		if !bytes.Equal(tree.Root, head.Root) {
			return f.contradiction(l, kindFork, e, "the log's %d entries don't make the root that it signed", tree.Size)
		}
		return nil
	}
	path, err := l.consistency(ctx, tree.Size, head)
	if err != nil {
		return f.withheld(l, e, fmt.Errorf("the proof from %d to %d entries: %w", tree.Size, head.Size, err))
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, tree.Size, head.Size, path, tree.Root, head.Root); err != nil {
		e.Proof = path
		return f.contradiction(l, kindFork, e, "the log's tree of %d entries doesn't begin with the %d that were there before", head.Size, tree.Size)
	}
	return nil
}

// batch follows the next entries: tree grows by them once the Keeper has them.
func (f *Follower) batch(ctx context.Context, l *source, tree *compact.Range, head remote.Head) error {
	from := tree.End()
	e := Evidence{Shown: head.Raw, From: from}
	leaves, err := l.leaves(ctx, from, head)
	if err != nil {
		return f.withheld(l, e, err)
	}
	entries := make([]Entry, len(leaves))
	for i, leaf := range leaves {
		entries[i], err = parseLeaf(leaf)
		entries[i].Index = from + uint64(i)
		if err != nil {
			e.Leaf = leaf
			return f.contradiction(l, kindEntry, e, "entry %d can't be read: %v", entries[i].Index, err)
		}
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
			return err
		}
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return err
	}
	e.Root = root
	if err := f.consistent(ctx, l, checkpoint.Tree{Size: tree.End(), Root: root}, head, e); err != nil {
		return err
	}
	return f.o.Keeper.Keep(ctx, l.Description, from, entries, Position{Size: tree.End(), Head: head.Size, Hashes: slices.Clone(tree.Hashes()), Checkpoint: head.Raw})
}

// withheld makes a contradiction of what the log lacks of a tree that it signed, and of
// what it gives in no form that a log may; other errors are passed on.
func (f *Follower) withheld(l *source, e Evidence, err error) error {
	switch {
	case errors.Is(err, remote.ErrAbsent):
		return f.contradiction(l, kindWithheld, e, "the log doesn't show what it signed: %v", err)
	case errors.Is(err, errMalformed):
		return f.contradiction(l, kindEntry, e, "%v", err)
	}
	return err
}

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

type metrics struct {
	followed, size *prometheus.GaugeVec
	contradictions *prometheus.CounterVec
}

// newMetrics registers the metrics.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		followed: metric.Gauge("mayfly_follow_entries", "Entries of the log that were verified and kept in the store.", "log"),
		size:     metric.Gauge("mayfly_follow_log_entries", "Entries of the log itself, as it signed last.", "log"),
		contradictions: metric.Counter("mayfly_follow_contradictions_total",
			"Looks at which the log contradicted what it had signed, by kind (fork, back, withheld, entry). Any increase needs a person.", "log", "kind"),
	}
	return m, metric.Register(r, m.followed, m.size, m.contradictions)
}

// forget takes a log's gauges.
func (m *metrics) forget(url string) {
	m.followed.DeleteLabelValues(url)
	m.size.DeleteLabelValues(url)
}

func (m *metrics) show(s Status) {
	m.followed.WithLabelValues(s.URL).Set(float64(s.Followed))
	m.size.WithLabelValues(s.URL).Set(float64(s.Size))
	for _, kind := range kinds {
		count := m.contradictions.WithLabelValues(s.URL, kind)
		if c := (*Contradiction)(nil); errors.As(s.Err, &c) && c.Kind == kind {
			count.Inc()
		}
	}
}
