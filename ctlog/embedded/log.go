package embedded

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/ctlog/witness"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Config is the log's part of the configuration.
type Config = ctlog.EmbeddedConfig

// Options are what a log needs besides its configuration.
type Options struct {
	Signer  ctlog.Signer          // the log's key, ECDSA on P-256
	Roots   [][]byte              // DER: what get-roots lists and the submission API accepts; may be empty
	Now     func() time.Time      // nil: time.Now
	Logger  *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: nothing is registered
	Reads   *read.Budget          // of all logs of the process; nil: one for this log alone

	// Create makes a new log where the directory holds none. Without it Open
	// refuses an empty directory, which is what a disk that isn't mounted looks like.
	Create bool

	// Zero but in tests, and then these defaults.
	lockWait time.Duration                               // how long a taken lock is tried: 5 s
	maxQueue int                                         // entries that may wait; more are refused: 4096
	free     func(path string) (bytes uint64, err error) // of the disk of a path: asks the file system
	reached  func(point string)                          // called at points of an integration, where a crash may come: nothing
}

const (
	defaultLockWait = 5 * time.Second
	defaultMaxQueue = 4096
)

// MMD is the log's maximum merge delay (RFC 6962 §3). Entries are readable after
// two checkpoint intervals; this leaves room for a machine that is busy.
const MMD = time.Minute

// Log is an open log. It is a [ctlog.Log], and safe for concurrent use.
type Log struct {
	o           Options
	config      Config
	description ctlog.Description
	prefix      string
	dir         logdir.Dir
	issuers     *logdir.Issuers
	verifier    note.Verifier // of the log's checkpoints

	until atomic.Pointer[time.Time] // when the log's time ends; in description it stays what Open was told
	roots atomic.Pointer[[][]byte]  // what get-roots lists and the submission API accepts

	reads     *read.API
	witnesses *witness.Client
	scrub     *maintain.Scrub
	metrics   *metrics

	// What start sets, for as long as the log is open.
	lock   *logdir.Lock
	mark   highWater
	ctx    context.Context //nolint:containedctx // of the log's goroutines; canceled by Close
	cancel context.CancelFunc

	queue   chan *submission
	drained chan struct{}  // closed when the sequencer has answered everyone
	behind  sync.WaitGroup // integration and publication

	closing sync.RWMutex // held for reading while something is put into the queue
	closed  bool         // guarded by closing

	flushing sync.Mutex     // held by the sequencer for a batch, by Ready for a probe; guards what follows
	ahead    writeAhead     // nil where the log couldn't be opened
	head     *compact.Range // of what is sequenced
	unheld   *frame         // the last one, until it is durable

	growing sync.Mutex     // held while the tree grows, before backlog.mu and after flushing; guards what follows
	base    *compact.Range // of the tree

	backlog   backlog
	toPublish chan struct{} // holds one: the tree has grown

	submissionLimit *rate.Limiter                           // of the submission API
	submitters      *lru.Cache[netip.Prefix, *rate.Limiter] // of the addresses that came last
	dedup           *lru.Cache[[32]byte, *submission]       // its last entries by the SHA-256 of their certificates
}

// writeAhead is what a log does with its [wal.File].
type writeAhead interface {
	Append(f wal.Frame) error
	Fits(size int, tree uint64) bool
	Close() error
}

// highWater is what a log does with its [logdir.Mark].
type highWater interface {
	Advance(to logdir.High) error
	Close() error
}

var _ ctlog.Log = (*Log)(nil)

// Open opens the log in c.Directory, or makes one when the options say so. It
// refuses a log that is in use (ErrLocked), was rolled back, forked or damaged, or
// belongs to another key or name. The log writes until [Log.Close]; the context
// bounds the opening only.
func Open(ctx context.Context, c Config, o Options) (*Log, error) {
	l, err := prepare(c, o)
	if err != nil {
		return nil, err
	}
	if err := l.acquire(ctx); err != nil {
		l.metrics.unregister()
		return nil, fmt.Errorf("opening the log in %s: %w", c.Directory, err)
	}
	if err := l.start(ctx); err != nil {
		l.metrics.unregister()
		return nil, fmt.Errorf("opening the log in %s: %w", c.Directory, errors.Join(err, l.releaseFiles()))
	}
	go l.sequence()
	l.behind.Go(func() { l.integrate(l.ctx) })
	l.behind.Go(func() { l.publishTrees(l.ctx) })
	return l, nil
}

// Create makes a new, empty log and closes it again. It refuses a directory that
// holds a log.
func Create(ctx context.Context, c Config, o Options) error {
	if logdir.Dir(c.Directory).Exists(logdir.StateDir, logdir.TreeStateName) {
		return fmt.Errorf("the directory %s holds a log already", c.Directory)
	}
	o.Create = true
	l, err := Open(ctx, c, o)
	if err != nil {
		return err
	}
	if err := l.Close(ctx); err != nil {
		return err
	}
	return l.dir.Own() // of what the storage has made; root may have run this for a service
}

// describe is the part of a Log that its configuration and its key say.
func describe(c Config, key crypto.PublicKey) (*Log, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err == nil {
		_, err = ctlog.ParseKey(spki)
	}
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(strings.TrimSuffix(c.URL, "/"))
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("the log's URL %q is not an absolute URL", c.URL)
	}
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	return &Log{
		config: c, prefix: u.Path, dir: logdir.Dir(c.Directory), verifier: verifier,
		description: ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: u.String(), Operator: c.Operator, Start: c.Start, End: c.End},
	}, err
}

// prepare makes a Log from its settings, without touching a file.
func prepare(c Config, o Options) (*Log, error) {
	if o.Signer == nil {
		return nil, errors.New("the log needs its key")
	}
	c.CheckpointInterval = cmp.Or(c.CheckpointInterval, ctlog.DefaultCheckpointInterval)
	l, err := describe(c, o.Signer.Public())
	if err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.free == nil {
		o.free = freeBytes
	}
	if o.reached == nil {
		o.reached = func(string) {}
	}
	o.lockWait, o.maxQueue = cmp.Or(o.lockWait, defaultLockWait), cmp.Or(o.maxQueue, defaultMaxQueue)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler)).With(slog.String("log", l.description.URL))
	l.o, l.issuers = o, l.dir.Issuers()
	l.queue, l.drained, l.toPublish = make(chan *submission, o.maxQueue), make(chan struct{}), make(chan struct{}, 1)
	l.backlog.added, l.backlog.grown = make(chan struct{}, 1), make(chan struct{}, 1)
	l.submissionLimit = rate.NewLimiter(submissionRate, submissionBurst)
	l.dedup, _ = lru.New[[32]byte, *submission](dedupEntries) // it fails for a size below 1
	l.submitters, _ = lru.New[netip.Prefix, *rate.Limiter](maxAddresses)
	l.AcceptRoots(o.Roots)
	l.reads = read.New(read.Options{
		Dir: l.dir, Issuers: l.issuers, Roots: l.acceptedRoots, Logger: o.Logger, Budget: o.Reads, Posts: l.posts(),
		Head: func() (checkpoint.Head, error) { return l.backlog.now().published, nil },
	})
	l.scrub = &maintain.Scrub{
		Dir: string(l.dir), Key: l.description.SPKI, MarkFile: string(c.MarkFile), Interval: c.VerifyInterval, Now: o.Now, Logger: o.Logger,
	}
	consistency := func(ctx context.Context, smaller, size uint64) ([][]byte, error) {
		return l.dir.Consistency(ctx, smaller, size, size)
	}
	if l.witnesses, err = witness.New(c.Witnesses, witness.Options{Now: o.Now, Logger: o.Logger, Consistency: consistency}); err != nil {
		return nil, err
	}
	l.metrics, err = newMetrics(o.Metrics, l)
	return l, err
}

// Description is what the trust root says of the log.
func (l *Log) Description() ctlog.Description {
	d := l.description
	if end := l.until.Load(); end != nil {
		d.End = *end
	}
	return d
}

// SetEnd moves the moment from which the log takes nothing more, the one thing
// about a log that may change in its life: when a successor is named.
func (l *Log) SetEnd(end time.Time) { l.until.Store(&end) }

// AcceptRoots puts roots, in DER, in the place of those that get-roots lists and
// the submission API accepts: the CA's authorities have changed.
func (l *Log) AcceptRoots(roots [][]byte) { l.roots.Store(&roots) }

func (l *Log) acceptedRoots() [][]byte { return *l.roots.Load() }

// Prefix is the path of the log's URL, under which [Log.Handler] is to be mounted.
func (l *Log) Prefix() string { return l.prefix }

// Handler serves the log below its prefix, which http.StripPrefix has taken off: the
// reads of [read.API.Handler] and, when the configuration turns it on, submission.
func (l *Log) Handler() http.Handler { return l.reads.Handler() }

// LocalReads serves the reads to this process itself: see [read.API.Local].
func (l *Log) LocalReads() http.Handler { return l.reads.Local() }

// Submit records the chain and returns its SCT when everything that the SCT
// promises is on disk.
//
// Errors: a *fault.Error with reason Overloaded when the queue is full,
// ShuttingDown after Close, LogUnavailable when the storage fails, or (with
// ctlog.ErrOutsideWindow) when it isn't the log's time; the context's error when it
// ends first, in which case the entry may be logged later.
func (l *Log) Submit(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	now := l.o.Now()
	if !l.Description().Holds(now) { // clients judge an SCT by the time in it
		return ctlog.SCT{}, ctlog.LogEnded(l.description.URL)
	}
	p, err := l.record(ctx, precertEntry(chain, now), chain.Issuers)
	if err != nil {
		return ctlog.SCT{}, err
	}
	return l.promise(ctx, p)
}

func precertEntry(chain ctlog.Chain, now time.Time) *ctonly.Entry {
	return &ctonly.Entry{
		Timestamp: millis(now), IsPrecert: true, Certificate: chain.TBS,
		Precertificate: chain.Precertificate, IssuerKeyHash: chain.IssuerKeyHash[:],
	}
}

// record stores the certificates above an entry, and then puts it into the log.
func (l *Log) record(ctx context.Context, entry *ctonly.Entry, issuers [][]byte) (_ *submission, err error) {
	if entry.FingerprintsChain, err = l.issuers.Keep(issuers); err != nil {
		return nil, unavailable(err)
	}
	return l.place(ctx, entry)
}

// promise signs the SCT of an entry, beside the flush that makes it durable, and gives
// it out when it is.
func (l *Log) promise(ctx context.Context, s *submission) (ctlog.SCT, error) {
	extensions, err := ctlog.LeafIndexExtension(s.index)
	if err != nil {
		return ctlog.SCT{}, err
	}
	// A MerkleTreeLeaf (RFC 6962 §3.4) has the bytes that the SCT signs (§3.2): both
	// start with version v1 and a zero for their type.
	digest := sha256.Sum256(s.entry.MerkleTreeLeaf(s.index))
	signature, err := l.o.Signer.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return ctlog.SCT{}, fault.New(fault.LogUnavailable, "the transparency log's key can't be used now; try again").
			With("dependency", "ctlog").Because(err)
	}
	select {
	case <-s.flushed.done:
		if s.flushed.err != nil {
			return ctlog.SCT{}, s.flushed.err
		}
	case <-ctx.Done():
		return ctlog.SCT{}, fmt.Errorf("waiting for the log: %w", ctx.Err())
	}
	return ctlog.SCT{LogID: l.description.ID, Timestamp: s.entry.Timestamp, Extensions: extensions, Signature: signature}, nil
}

// Ready is nil when the log takes entries, a [fault.Warning] when it does though its
// disk has less room than the configured floor, or a scrub has found damage. After a
// storage error it tries whether the disk holds again, so that a log without callers
// recovers as well.
func (l *Log) Ready(ctx context.Context) error {
	if err := l.takes(ctx); err != nil {
		return err
	}
	var warnings []string
	if err := l.room(); fault.Warns(err) {
		warnings = append(warnings, err.Error())
	} else if err != nil {
		return err
	}
	if l.scrub.Damaged() {
		warnings = append(warnings, "a check of the whole log found it damaged; mayfly log verify says where, and entries are taken all the same")
	}
	return fault.Warn(warnings...)
}

// takes is nil when the log takes entries, as long as its disk has room.
func (l *Log) takes(ctx context.Context) error {
	l.closing.RLock()
	closed := l.closed
	l.closing.RUnlock()
	if closed {
		return errors.New("the log is closed")
	}
	if delay := l.mergeDelay(); delay > max(MMD/2, 3*l.config.CheckpointInterval) {
		return fmt.Errorf("entries have been waiting for their checkpoint for %v, and are promised it within %v", delay.Round(time.Second), MMD)
	}
	if !l.flushing.TryLock() {
		return l.backlog.now().failed // a batch is on its way to the disk; its outcome decides next time
	}
	defer l.flushing.Unlock()
	if l.unheld == nil && l.backlog.now().failed == nil {
		return l.lock.Held()
	}
	if err := l.dir.Probe(); err != nil {
		return fmt.Errorf("the log's disk does not hold: %w", err)
	}
	return l.sound(ctx)
}

// Scrub checks the whole log from time to time, as configured, until ctx ends. What it
// finds damaged is a warning of the log: entries are taken, because what is damaged is old.
func (l *Log) Scrub(ctx context.Context) { l.scrub.Run(ctx) }

// Close refuses new submissions, answers those that are queued, publishes a
// checkpoint over them and releases the directory. The context bounds the wait;
// an error means that entries may still wait for their checkpoint, which the next
// Open publishes.
func (l *Log) Close(ctx context.Context) error {
	l.closing.Lock()
	if l.closed {
		l.closing.Unlock()
		return nil
	}
	l.closed = true
	close(l.queue)
	l.closing.Unlock()

	err := l.finish(ctx)
	l.cancel()
	l.witnesses.Close()
	l.metrics.unregister()
	return errors.Join(err, l.releaseFiles())
}

// finish answers the last submissions, makes them part of the tree and publishes it.
func (l *Log) finish(ctx context.Context) error {
	select {
	case <-l.drained:
	case <-ctx.Done():
		return fmt.Errorf("answering the last submissions: %w", ctx.Err())
	}
	l.cancel()
	ended := make(chan struct{})
	go func() { l.behind.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("publishing the last checkpoint: %w", ctx.Err())
	}
	l.flushing.Lock()
	defer l.flushing.Unlock()
	err := l.sound(ctx) // once more, after an error: no checkpoint covers what wasn't verified
	if err == nil {
		l.growing.Lock()
		defer l.growing.Unlock()
		err = l.grow(ctx)
	}
	if err == nil {
		err = l.publish(ctx)
	}
	if err != nil {
		return fmt.Errorf("publishing the last checkpoint: %w", err)
	}
	return nil
}

func (l *Log) releaseFiles() error {
	var err error
	if l.ahead != nil {
		err = l.ahead.Close()
	}
	if l.mark != nil {
		err = errors.Join(err, l.mark.Close())
	}
	return errors.Join(err, l.lock.Release())
}

// unavailable is what a client reads when the storage fails.
func unavailable(cause error) error {
	return fault.New(fault.LogUnavailable, "the transparency log can't store entries now; nothing was issued; try again").
		With("dependency", "ctlog").After(time.Second).Because(cause)
}
