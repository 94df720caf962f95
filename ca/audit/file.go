package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/filelock"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// refusedPace is the least time between two commits of the file of refusals, so
// that a flood of bad tokens can't take the disk's flushes from issuance.
const refusedPace = 10 * time.Millisecond

// Options are what Open needs besides the configuration.
type Options struct {
	// Source is the CloudEvents source, a URI reference that names this
	// instance; empty means "mayfly".
	Source string
	// Now is the clock of events without a time; nil means time.Now.
	Now func() time.Time
	// Logger hears of storage failures and recoveries; nil discards.
	Logger *slog.Logger
	// Metrics registers the package's metrics; nil leaves them out.
	Metrics prometheus.Registerer
}

// File is an audit trail on disk. It is safe for concurrent use. It has no goroutine
// while nobody records.
type File struct {
	lock    io.Closer
	streams []*stream // that of certificates first, then of refusals
	closing sync.Once
}

// Open opens or creates the trail and its file of refusals. A last line that a
// crash cut short is set aside: it is quoted in a record of type
// dev.mayfly.audit.recovered, so that every line of the file parses.
//
// It fails when the folder is missing, a path isn't a regular file, or another
// process holds the trail.
func Open(c Config, o Options) (*File, error) {
	all := Files(string(c.Path))
	return open(c, o, written{all[0], c.Rotation, 0}, written{all[1], c.RefusedRotation, refusedPace})
}

// written is a file that is opened for writing.
type written struct {
	TrailFile
	rotation Rotation
	pace     time.Duration
}

// open opens files under the lock of the first.
func open(c Config, o Options, files ...written) (*File, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger, o.Source = cmp.Or(o.Logger, slog.New(slog.DiscardHandler)), cmp.Or(o.Source, "mayfly")
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("the audit trail: %w", err)
	}
	key, err := c.Key()
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := usable(file.Path); err != nil {
			return nil, err
		}
	}
	f := &File{}
	if f.lock, err = acquire(lockPath(files[0].Path), lockWait); err != nil {
		return nil, err
	}
	v := newEnvelope(o.Source, rand.Text()[:16], o.Now) // ids are unique across restarts, and count within a run
	for _, file := range files {
		s, err := openStream(file.Name, newDisk(file.Path, file.rotation), batchLimit(file.rotation), file.pace, key, v, m, o.Logger)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.streams = append(f.streams, s)
	}
	return f, nil
}

// headEvery is how long records wait for a head at most, and so how much of a trail can
// be cut off unseen.
const headEvery = time.Minute

// Run signs heads until ctx ends. Close signs the last ones.
func (f *File) Run(ctx context.Context) error {
	for wait.For(ctx, headEvery) == nil {
		for _, s := range f.streams {
			_ = s.sign(ctx) // the stream tells of its failures, and the next head covers what this one should
		}
	}
	return nil
}

// Append records an act of an administrator, in the file of those beside the trail, which
// a service may hold meanwhile. What is made belongs to whom the folder belongs to.
func Append(ctx context.Context, c Config, e Event) error {
	file := Files(string(c.Path))[2]
	f, err := open(c, Options{}, written{file, DefaultConfig().Rotation, 0})
	if err != nil {
		return err
	}
	e.Type = Admin
	return errors.Join(f.Record(ctx, e), f.Close(), durable.OwnerAsFolder(file.Path), durable.OwnerAsFolder(lockPath(file.Path)))
}

// Record writes e and returns when it is durable: written and flushed to the disk.
//
// An error is a *fault.Error: AUDIT_UNAVAILABLE when the storage failed, too
// many records wait, or the trail is closed; DEADLINE_EXCEEDED or CLIENT_GONE
// when ctx ended first; INTERNAL for an unknown type. After an error the record may
// still be, or come to be, in the file: "failed", and "failed after it took effect".
func (f *File) Record(ctx context.Context, e Event) error {
	if !e.Type.valid() {
		return fault.From(fmt.Errorf("audit event of unknown type %q", e.Type))
	}
	if e.refusal() {
		return f.streams[1].record(ctx, &e)
	}
	return f.streams[0].record(ctx, &e)
}

// Ready is nil when the trail can be written as far as is known. After a storage
// failure it tries the storage again, so that the service recovers without traffic.
func (f *File) Ready(ctx context.Context) error { return f.streams[0].ready(ctx) }

// Close makes what was accepted durable and closes the files. Record fails from then
// on. A second Close does nothing.
func (f *File) Close() error {
	var errs []error
	f.closing.Do(func() {
		for _, s := range f.streams {
			errs = append(errs, s.close())
		}
		errs = append(errs, f.lock.Close())
	})
	return errors.Join(errs...)
}

// Inspect says what [Open] would: whether the trail's files can be written. It only
// looks, and may run beside a service, whose hold of the trail inUse reports.
func Inspect(c Config) (inUse bool, err error) {
	path := string(c.Path)
	if _, err := c.Key(); err != nil {
		return false, err
	}
	for _, file := range Files(path)[:2] {
		if err := usable(file.Path); err != nil {
			return false, err
		}
		for _, needed := range []string{filepath.Dir(file.Path), file.Path} {
			if err := durable.Writable(needed); err != nil {
				return false, fmt.Errorf("%s can't be written by this user: %w; run it as the user of the service, or give it to that one", needed, err)
			}
		}
	}
	return filelock.Held(lockPath(path))
}

func lockPath(trail string) string { return trail + ".lock" }

// lockWait is how long Open waits for another process to let go of the trail.
const lockWait = 5 * time.Second

// acquire takes the lock file at path, which is created and stays, and waits for
// it as long as told. The lock is separate from the trail because rotation
// replaces the trail's file.
func acquire(path string, patience time.Duration) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the audit trail: %w", err)
	}
	err = filelock.Retry(context.Background(), patience, func() error { return filelock.Take(f) }) //nolint:forbidigo // Open has no context; the wait is bounded
	if err == nil {
		return f, nil
	}
	if errors.Is(err, filelock.ErrHeld) {
		err = fmt.Errorf("locking %s: another process writes this audit trail; give each its own path", path)
	}
	return nil, errors.Join(err, f.Close())
}
