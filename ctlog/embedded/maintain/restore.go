package maintain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// lockWait is how long a restored log's mark and directory are waited for.
const lockWait = time.Second

// ErrBehind means that a log released SCTs that a backup of it doesn't cover: a
// log that went on from there would be a fork.
var ErrBehind = errors.New("the backup is older than the log was: it can be served, but nothing may be added to it")

// Restore makes a log of a backup in an empty or missing directory. It verifies
// the backup first, whole and against the log's high-water mark. It refuses one
// that is behind the mark (ErrBehind), or when the mark is lost: then the key may have
// signed more than the backup knows, and the log has to be followed by another one.
func Restore(ctx context.Context, backup, dir, markFile string, o VerifyOptions) (_ Report, err error) {
	from := logdir.Dir(backup)
	if name, err := logdir.Dir(dir).Occupied(); err != nil || name != "" {
		return Report{}, errors.Join(fmt.Errorf("%s isn't empty, it holds %s: a log is never overwritten", dir, name), err)
	}
	owner, head, err := from.Head(ctx)
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
	if err := copyLog(ctx, from, to, head.Size, nil); err != nil {
		return errors.Join(fmt.Errorf("copying the backup: %w", err), lock.Release())
	}
	if err = to.Put(head.Raw, logdir.CheckpointName); err == nil {
		err = copyEnd(from, to, head.Tree)
	}
	if err == nil {
		err = to.PutTree(head.Tree) // last: without it nothing opens the log
	}
	return errors.Join(err, lock.Release())
}
