package embedded

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/wait"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/time/rate"
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

	// Create makes a new log where the directory holds none. Without it Open
	// refuses an empty directory, which is what a disk that isn't mounted looks like.
	Create bool
	// AcceptMissingMark makes a new high-water mark for a log that has lost it. An
	// operator's decision: with the mark goes the proof that this copy is the newest.
	AcceptMissingMark bool

	LockWait time.Duration // how long a taken lock is tried; zero: 5 s
	MaxQueue int           // entries that may wait; more are refused; zero: 4096
	Linger   time.Duration // how long a batch waits for its callers to come back; zero: DefaultLinger

	// Sleep waits between two checks of the whole log, until ctx ends, whose error it
	// then returns; nil waits as long as it is told.
	Sleep func(ctx context.Context, d time.Duration) error

	// Free is how many bytes are free on the disk of a path; nil asks the file system.
	Free func(path string) (uint64, error)
}

// What an Options that says nothing means.
const (
	defaultLockWait = 5 * time.Second
	defaultMaxQueue = 4096
)

// DefaultLinger was chosen by measurement: docs/log-performance.md.
const DefaultLinger = 4 * time.Millisecond

// MMD is the log's maximum merge delay (RFC 6962 §3). Entries are readable after
// two checkpoint intervals; this leaves room for a machine that is busy.
const MMD = time.Minute

// Log is an open log. It is a [ctlog.Member], and safe for concurrent use.
type Log struct {
	roots    atomic.Pointer[[][]byte] // in place of the options', once they have changed
	about    ctlog.Description
	origin   string
	prefix   string
	o        Options
	config   Config
	store    store
	issuers  *issuers
	lock     *dirLock
	mark     *markFile
	verifier note.Verifier
	metrics  *metrics

	until atomic.Pointer[time.Time] // when the log's time ends; in about it stays what Open was told

	add      func(context.Context, *ctonly.Entry) tessera.IndexFuture
	shutdown func(context.Context) error
	life     context.Context //nolint:containedctx // the life of Tessera's goroutines; ended by Close
	end      context.CancelFunc

	queue   chan *submission
	drained chan struct{} // closed when the gate has answered everyone

	closing sync.RWMutex // held for reading while something is put into the queue
	closed  bool

	state   sync.Mutex // held by the gate for a batch, by Ready for a probe
	tree    tree       // what is on disk, and in the mark
	suspect error      // why the disk must be read again before the next batch

	published published
	witnesses *witnesses
	patrol    patrol
	index     hashIndex
	packed    packed
	seen      recent
	strangers *rate.Limiter // of the submission API
}

var _ ctlog.Member = (*Log)(nil)

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
		l.metrics.end()
		return nil, fmt.Errorf("opening the log in %s: %w", c.Directory, err)
	}
	if err := l.start(ctx); err != nil {
		l.metrics.end()
		return nil, fmt.Errorf("opening the log in %s: %w", c.Directory, errors.Join(err, l.releaseFiles()))
	}
	go l.commitBatches()
	return l, nil
}

// Create makes a new, empty log and closes it again. It refuses a directory that
// holds a log.
func Create(ctx context.Context, c Config, o Options) error {
	if (store{dir: string(c.Directory)}).exists(stateDir, treeStateName) {
		return fmt.Errorf("the directory %s holds a log already", c.Directory)
	}
	o.Create = true
	l, err := Open(ctx, c, o)
	if err != nil {
		return err
	}
	return l.Close(ctx)
}

// prepare makes a Log from its settings, without touching a file.
func prepare(c Config, o Options) (*Log, error) {
	if o.Signer == nil {
		return nil, errors.New("the log needs its key")
	}
	spki, err := marshalKey(o.Signer.Public())
	if err != nil {
		return nil, err
	}
	if c.CheckpointInterval == 0 {
		c.CheckpointInterval = ctlog.DefaultCheckpointInterval
	}
	o = withDefaults(o)
	u, err := url.Parse(strings.TrimSuffix(c.URL, "/"))
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("the log's URL %q is not an absolute URL", c.URL)
	}
	verifier, err := newVerifier(c.Origin(), o.Signer.Public())
	if err != nil {
		return nil, err
	}
	s := store{dir: string(c.Directory)}
	l := &Log{
		about: ctlog.Description{
			ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(c.URL, "/"),
			Operator: c.Operator, Start: c.Start, End: c.End,
		},
		origin: c.Origin(), prefix: u.Path, o: o, config: c, store: s, verifier: verifier,
		issuers: &issuers{dir: s.path(issuerDir)},
		queue:   make(chan *submission, o.MaxQueue),
		drained: make(chan struct{}), strangers: rate.NewLimiter(submissionRate, submissionBurst),
	}
	l.published.open = func(raw []byte) (head, error) { return openCheckpoint(raw, verifier) }
	if l.metrics, err = newMetrics(o.Metrics, l); err != nil {
		return nil, err
	}
	if l.witnesses, err = newWitnesses(l, c.Witnesses); err != nil {
		return nil, err
	}
	return l, nil
}

func withDefaults(o Options) Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LockWait <= 0 {
		o.LockWait = defaultLockWait
	}
	if o.MaxQueue <= 0 {
		o.MaxQueue = defaultMaxQueue
	}
	if o.Linger <= 0 {
		o.Linger = DefaultLinger
	}
	if o.Sleep == nil {
		o.Sleep = wait.For
	}
	if o.Free == nil {
		o.Free = freeBytes
	}
	return o
}

// Description is what the trust root says of the log.
func (l *Log) Description() ctlog.Description {
	d := l.about
	if end := l.until.Load(); end != nil {
		d.End = *end
	}
	return d
}

// SetEnd moves the moment from which the log takes nothing more, the one thing
// about a log that may change in its life: when a successor is named.
func (l *Log) SetEnd(end time.Time) { l.until.Store(&end) }

// Prefix is the path of the log's URL, under which [Log.Handler] is to be mounted.
func (l *Log) Prefix() string { return l.prefix }

// Submit records the chain and returns its SCT when everything that the SCT
// promises is on disk.
//
// Errors: a *fault.Error with reason Overloaded when the queue is full,
// ShuttingDown after Close, LogUnavailable when the storage fails, or (with
// ctlog.ErrOutsideWindow) when it isn't the log's time; the context's error when it ends first, in which case the entry may be logged later.
func (l *Log) Submit(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	fingerprints, err := l.issuers.keep(chain.Issuers)
	if err != nil {
		return ctlog.SCT{}, unavailable(err)
	}
	now := l.o.Now()
	if !l.Description().Holds(now) { // clients judge an SCT by the time in it
		return ctlog.SCT{}, ctlog.Late(l.about.URL)
	}
	entry := &ctonly.Entry{
		Timestamp:         millis(now),
		IsPrecert:         true,
		Certificate:       chain.TBS,
		Precertificate:    chain.Precertificate,
		IssuerKeyHash:     chain.IssuerKeyHash[:],
		FingerprintsChain: fingerprints,
	}
	index, err := l.place(ctx, entry)
	if err != nil {
		return ctlog.SCT{}, err
	}
	return l.promise(ctx, entry, index)
}

// promise signs the SCT of an entry that is in the log.
func (l *Log) promise(ctx context.Context, entry *ctonly.Entry, index uint64) (ctlog.SCT, error) {
	extensions, err := ctlog.LeafIndexExtension(index)
	if err != nil {
		return ctlog.SCT{}, err
	}
	digest := sha256.Sum256(signedBytes(entry, extensions))
	signature, err := l.o.Signer.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return ctlog.SCT{}, fault.New(fault.LogUnavailable, "the transparency log's key can't be used now; try again").
			With("dependency", "ctlog").Because(err)
	}
	return ctlog.SCT{LogID: l.about.ID, Timestamp: entry.Timestamp, Extensions: extensions, Signature: signature}, nil
}

// Ready is nil when the log takes entries, its disk has more room than the
// configured floor, and no check of it has found damage. After a storage error it tries whether the disk holds again, so
// that a log without callers recovers as well.
func (l *Log) Ready(ctx context.Context) error {
	l.closing.RLock()
	closed := l.closed
	l.closing.RUnlock()
	if closed {
		return errors.New("the log is closed")
	}
	if _, err := l.head(ctx); err != nil {
		return err
	}
	if err := l.room(); err != nil {
		return err
	}
	if err := l.damage(); err != nil {
		return err
	}
	if !l.state.TryLock() {
		return nil // a batch is on its way to the disk; its outcome decides next time
	}
	defer l.state.Unlock()
	if l.suspect == nil {
		return l.lock.held()
	}
	if err := l.probe(); err != nil {
		return fmt.Errorf("the log's disk does not hold: %w", err)
	}
	return l.recover(ctx)
}

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

	var err error
	select {
	case <-l.drained:
		if err = l.shutdown(ctx); err != nil {
			err = fmt.Errorf("publishing the last checkpoint: %w", err)
		}
	case <-ctx.Done():
		err = fmt.Errorf("answering the last submissions: %w", ctx.Err())
	}
	l.end()
	l.witnesses.close()
	l.metrics.end()
	return errors.Join(err, l.releaseFiles())
}

func (l *Log) releaseFiles() error {
	var err error
	if l.mark != nil {
		err = l.mark.close()
	}
	return errors.Join(err, l.lock.release())
}

// unavailable is what a client reads when the storage fails.
func unavailable(cause error) error {
	return fault.New(fault.LogUnavailable, "the transparency log can't store entries now; nothing was issued; try again").
		With("dependency", "ctlog").After(time.Second).Because(cause)
}
