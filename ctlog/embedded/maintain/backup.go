package maintain

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Backup copies what the published checkpoint of a log covers into another
// folder, and checks the copy as [Verify] does. The log may be in use meanwhile.
// What the folder holds from an earlier backup is not copied again.
//
// A backup has no state: no log opens on it, so it can be served or kept, but
// never forks the log. [Restore] makes a log of it again.
func Backup(ctx context.Context, dir, to string, o VerifyOptions) (Report, error) {
	from, copied := logdir.Dir(dir), logdir.Dir(to)
	owner, head, err := from.Head() // first: everything that the checkpoint covers is there already
	if err != nil {
		return Report{}, err
	}
	if copied.Exists(logdir.StateDir) {
		return Report{}, fmt.Errorf("%s is a log itself, not a backup", to)
	}
	if copied.Exists(logdir.OwnerName) { // which a backup has first of all
		if earlier, err := copied.Owner(); err != nil || string(earlier.Key) != string(owner.Key) {
			return Report{}, errors.Join(fmt.Errorf("%s holds another log's backup", to), err)
		}
	} else if name, err := copied.Occupied(); err != nil || name != "" {
		return Report{}, errors.Join(fmt.Errorf("%s holds something else than a backup of this log, %s: name a new folder", to, name), err)
	}
	if err := copyLog(ctx, from, head, into(copied), o.Progress); err != nil {
		return Report{}, fmt.Errorf("copying the log: %w", err)
	}
	o.Backup, o.Progress = true, nil
	return Verify(ctx, to, o)
}

// Copy gives put what Backup copies, by names below dir, and says how many entries the
// checkpoint covers. The log may be in use.
func Copy(ctx context.Context, dir string, put func(name string, data []byte) error) (entries uint64, err error) {
	from := logdir.Dir(dir)
	_, head, err := from.Head()
	if err != nil {
		return 0, err
	}
	return head.Size, copyLog(ctx, from, head, func(name string, _ bool, read func() ([]byte, error)) error {
		data, err := read()
		if err != nil {
			return err
		}
		return put(name, data)
	}, nil)
}

// putting takes a file of a log. What is final stays the same for ever.
type putting func(name string, final bool, read func() ([]byte, error)) error

// into puts files into a folder, but for final ones that are there already: Verify looks
// into those.
func into(to logdir.Dir) putting {
	return func(name string, final bool, read func() ([]byte, error)) error {
		if final && to.Exists(name) {
			return nil
		}
		data, err := read()
		if err != nil {
			return err
		}
		return to.Put(data, name)
	}
}

// copyEnd copies that the log is frozen, where it was with the tree given: what is
// restored takes nothing any more, as the log that was copied.
func copyEnd(from logdir.Dir, t checkpoint.Tree, put putting) error {
	raw, err := os.ReadFile(from.Path(logdir.FrozenName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var end frozenAt
	if err == nil {
		err = json.Unmarshal(raw, &end)
	}
	if err != nil {
		return fmt.Errorf("reading how the log was frozen: %w", err)
	}
	if end.Size != t.Size || !bytes.Equal(end.Root, t.Root) {
		return fmt.Errorf("the log was frozen with %d entries and another checkpoint than the one of %d: copy it again", end.Size, t.Size)
	}
	return put(logdir.FrozenName, false, func() ([]byte, error) { return raw, nil })
}

// copyLog copies what a checkpoint covers, and then the checkpoint: it says that all else
// is there.
func copyLog(ctx context.Context, from logdir.Dir, head checkpoint.Head, put putting, progress func(done, total uint64)) error {
	names := []string{logdir.OwnerName}
	issuers, err := os.ReadDir(from.Path(logdir.IssuerDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // an empty log has none
		return err
	}
	for _, e := range issuers {
		if fingerprint, err := hex.DecodeString(e.Name()); err == nil && len(fingerprint) == sha256.Size {
			names = append(names, filepath.Join(logdir.IssuerDir, e.Name()))
		}
	}
	for _, name := range names {
		if err := put(name, true, func() ([]byte, error) { return os.ReadFile(from.Path(name)) }); err != nil {
			return err
		}
	}
	for level := logdir.DataLevel; level <= logdir.MaxLevel; level++ {
		entries := head.Size >> (layout.TileHeight * max(level, 0))
		for index := uint64(0); index*layout.TileWidth < entries; index++ {
			t := logdir.TilePath{Level: level, Index: index}
			if left := entries - index*layout.TileWidth; left < layout.TileWidth {
				t.Width = uint8(left)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := put(t.Name(), t.Width == 0, func() ([]byte, error) { return from.Tile(t, head.Size) }); err != nil {
				return err
			}
			if level == logdir.DataLevel && progress != nil {
				progress(min(head.Size, (index+1)*layout.TileWidth), head.Size)
			}
		}
	}
	if err := put(logdir.CheckpointName, false, func() ([]byte, error) { return head.Raw, nil }); err != nil {
		return err
	}
	return copyEnd(from, head.Tree, put)
}

// lockWait is how long a restored log's mark and directory are waited for.
const lockWait = time.Second

// ErrBehind means that a log released SCTs that a backup of it doesn't cover: a
// log that went on from there would be a fork.
var ErrBehind = errors.New("the backup is older than the log was: it can be served, but nothing may be added to it")

// Restore makes a log of a backup in an empty or missing directory, or where it is. It verifies
// the backup first, whole and against the log's high-water mark. It refuses one
// that is behind the mark (ErrBehind), or when the mark is lost: then the key may have
// signed more than the backup knows, and the log has to be followed by another one.
func Restore(ctx context.Context, backup, dir, markFile string, o VerifyOptions) (_ Report, err error) {
	from := logdir.Dir(backup)
	if name, err := logdir.Dir(dir).Occupied(); (backup != dir || from.Exists(logdir.StateDir)) && (err != nil || name != "") {
		return Report{}, errors.Join(fmt.Errorf("%s isn't empty, it holds %s: a log is never overwritten", dir, name), err)
	}
	owner, head, err := from.Head()
	if err != nil {
		return Report{}, err
	}
	mark, high, err := logdir.TakeMark(ctx, markFile, sha256.Sum256(owner.Key), lockWait)
	switch {
	case errors.Is(err, logdir.ErrLocked):
		return Report{}, fmt.Errorf("the log whose mark is %s is running: end it before a copy takes its place: %w", markFile, err)
	case err != nil:
		return Report{}, fmt.Errorf("without the log's mark nobody knows what else the log promised: %w", err)
	}
	defer func() { err = errors.Join(err, mark.Close()) }()
	if high.Size > head.Size {
		return Report{}, fmt.Errorf("%w: it has %d entries, the log had %d", ErrBehind, head.Size, high.Size)
	}
	o.Backup, o.MarkFile = true, markFile
	report, err := Verify(ctx, backup, o)
	if err != nil {
		return report, err
	}
	return report, install(ctx, from, logdir.Dir(dir), head)
}

// install copies a verified backup and gives it the state that a log opens on.
func install(ctx context.Context, from, to logdir.Dir, head checkpoint.Head) error {
	if err := to.Make(); err != nil {
		return err
	}
	lock, err := to.Lock(ctx, lockWait)
	if err != nil {
		return err
	}
	if from != to {
		err = copyLog(ctx, from, head, into(to), nil)
	}
	if err != nil {
		err = fmt.Errorf("copying the backup: %w", err)
	} else {
		err = to.PutTree(head.Tree) // last: without it nothing opens the log
	}
	return errors.Join(err, lock.Release())
}

// frozenAt is what the file says, for people.
type frozenAt struct {
	checkpoint.Tree
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
	raw, err := json.MarshalIndent(frozenAt{r.Tree, now.UTC()}, "", "  ")
	if err == nil {
		err = durable.WriteNew(logdir.Dir(dir).Path(logdir.FrozenName), append(raw, '\n'), 0o644)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("freezing the log: %w", err)
	}
	return nil
}
