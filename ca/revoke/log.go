package revoke

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// MaxStatements bounds the log, and with it what the process holds (docs/limits.md).
const MaxStatements = 100_000

// lockWait is how long a predecessor that is just ending may have the files.
const lockWait = 5 * time.Second

// The files in the directory.
const (
	statementsName = "statements.jsonl"
	listsName      = "crl"
)

// Log is the statements: a file of one line each, whose Merkle tree (RFC 6962 §2.1) is
// in memory. It is safe for concurrent use.
type Log struct {
	signer   kms.Signer
	verifier note.Verifier
	now      func() time.Time
	mark     *logdir.Mark
	held     []func() error // gives up what is held

	mu     sync.Mutex // guards what follows
	file   *os.File
	lines  []int64 // where the line of each statement begins, and where the last one ends
	hashes hashes
	by     map[string]*authority
	broken error         // why nothing is taken until a restart
	grown  chan struct{} // closed when the log has grown

	signing sync.Mutex // guards signed; is taken before mu, which no slow key may hold
	signed  checkpoint.Head
}

// authority is what lists need of the statements about one, in their order. What is in
// entries never changes.
type authority struct {
	entries []entry
	listed  map[serial]uint64 // to the statement's index
}

type entry struct {
	serial    serial
	notBefore int64 // seconds since 1970
	reason    uint8
}

// hashes are those of the tree, as package tlog stores them.
type hashes []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = h[at]
	}
	return out, nil
}

// with is h with one more leaf, the n-th. h itself stays as it is.
func (h hashes) with(n int, leaf []byte) (hashes, error) {
	added, err := tlog.StoredHashes(int64(n), leaf, h)
	return append(h, added...), err
}

// openLog opens the statements in c's directory, or begins them where neither they nor
// their mark are there. It refuses what was damaged, is an older copy, or is in use.
func openLog(ctx context.Context, c Config, origin string, signer kms.Signer, now func() time.Time, logger *slog.Logger) (_ *Log, err error) {
	l := &Log{signer: signer, now: now, lines: []int64{0}, by: map[string]*authority{}, grown: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("revocation.directory %s: %w", c.Directory, err), l.close())
		}
	}()
	if k, ok := signer.Public().(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("revocation.key must be ECDSA on P-256, as a log's key is")
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	if l.verifier, err = checkpoint.NewVerifier(origin, signer.Public()); err != nil {
		return nil, err
	}
	dir, id := logdir.Dir(c.Directory), sha256.Sum256(spki)
	if err := dir.Make(); err != nil {
		return nil, err
	}
	lock, err := dir.Lock(ctx, lockWait)
	if err != nil {
		return nil, err
	}
	l.held = append(l.held, lock.Release)
	if _, err := os.Stat(string(c.MarkFile)); errors.Is(err, os.ErrNotExist) {
		if begun, err := os.Stat(dir.Path(statementsName)); err == nil && begun.Size() > 0 || dir.Exists(listsName) {
			return nil, fmt.Errorf("its mark %s is missing: without it an older copy can't be told from the newest; restore the file", c.MarkFile)
		}
		if err := errors.Join(dir.Put(nil, statementsName), logdir.CreateMark(string(c.MarkFile), id, logdir.EmptyTree())); err != nil {
			return nil, err
		}
	}
	var high logdir.High
	if l.mark, high, err = logdir.TakeMark(ctx, string(c.MarkFile), id, lockWait); err != nil {
		return nil, err
	}
	l.held = append(l.held, l.mark.Close)
	if l.file, err = os.OpenFile(dir.Path(statementsName), os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("%w; it had %d statements: restore the directory", err, high.Size)
	}
	l.held = append(l.held, func() error { return l.file.Close() })
	return l, l.recover(ctx, high, logger)
}

// recover reads the file up to its last whole line, holds it against the mark, and
// makes both say the same.
func (l *Log) recover(ctx context.Context, high logdir.High, logger *slog.Logger) error {
	r := bufio.NewReaderSize(l.file, maxStatement)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 { // nobody was told of it
				logger.WarnContext(ctx, "removed a statement that a crash cut short", slog.Int("bytes", len(line)))
			}
			break
		}
		n := l.size()
		var s *Statement
		if err == nil {
			s, err = ParseStatement(line[:len(line)-1])
		}
		if err == nil && s.Index != n {
			err = fmt.Errorf("it says that it is number %d", s.Index)
		}
		if err == nil {
			l.hashes, err = l.hashes.with(int(n), line[:len(line)-1]) // #nosec G115 -- what fits a file
		}
		if err != nil {
			return fmt.Errorf("statement %d is damaged, restore the directory: %w", n, err)
		}
		l.take(s, len(line))
	}
	if l.size() < high.Size {
		return fmt.Errorf("it has %d statements, and its mark says that there were %d: this is an older copy; restore the newest", l.size(), high.Size)
	}
	if root, err := tlog.TreeHash(int64(high.Size), l.hashes); err != nil || !bytes.Equal(root[:], high.Root) { // #nosec G115 -- no larger than the log
		return errors.Join(err, fmt.Errorf("its first %d statements aren't those that were made: restore the directory", high.Size))
	}
	if err := l.file.Truncate(l.lines[l.size()]); err != nil {
		return err
	}
	return l.secure(l.size(), l.hashes)
}

// take adds a statement with a line of so many bytes to all but the tree.
func (l *Log) take(s *Statement, bytes int) {
	a, n := l.of(s.Authority), s.number()
	a.listed[n] = s.Index
	a.entries = append(a.entries, entry{n, s.NotBefore.Unix(), reasons[s.Reason]})
	l.lines = append(l.lines, l.lines[s.Index]+int64(bytes))
}

func (l *Log) of(id string) *authority {
	a := l.by[id]
	if a == nil {
		a = &authority{listed: map[serial]uint64{}}
		l.by[id] = a
	}
	return a
}

func (l *Log) size() uint64 { return uint64(len(l.lines) - 1) }

func tree(size uint64, h hashes) (checkpoint.Tree, error) {
	root, err := tlog.TreeHash(int64(size), h) // #nosec G115 -- bounded by MaxStatements
	return checkpoint.Tree{Size: size, Root: root[:]}, err
}

// secure makes the file durable, and the mark of what is in it after it.
func (l *Log) secure(size uint64, h hashes) error {
	t, err := tree(size, h)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		return err
	}
	return l.mark.Advance(logdir.High{Tree: t, First: size})
}

// Append makes statements of drafts, which lack number and time, and gives the indexes of
// all once they are durable; of a certificate that was revoked before, that statement's.
// Its errors are a *fault.Error. After a failure of the disk nothing more is taken: what
// is on it decides at the next start.
func (l *Log) Append(drafts []Statement) ([]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, unavailable(l.broken)
	}
	if l.size()+uint64(len(drafts)) > MaxStatements {
		return nil, fault.New(fault.RequestMalformed, "this CA keeps %d statements at most: an authority with so many revoked certificates is better distrusted", MaxStatements)
	}
	indexes, err := l.append(drafts)
	if refused, ok := errors.AsType[*fault.Error](err); ok {
		return nil, refused
	}
	if err != nil {
		l.broken = err
		return nil, unavailable(err)
	}
	return indexes, nil
}

func (l *Log) append(drafts []Statement) (indexes []uint64, err error) {
	var text []byte
	var made []Statement
	again := map[string]uint64{} // of the drafts
	grown := l.hashes
	for _, s := range drafts {
		n := s.number()
		at, listed := l.of(s.Authority).listed[n]
		if !listed {
			at, listed = again[s.Authority+n.String()]
		}
		if listed {
			indexes = append(indexes, at)
			continue
		}
		s.Index, s.Serial, s.NotBefore, s.Time = l.size()+uint64(len(made)), n.String(), s.NotBefore.UTC().Truncate(time.Second), l.now().UTC().Truncate(time.Second)
		line, err := s.encode()
		if err != nil {
			return nil, err
		}
		if len(line) >= maxStatement {
			return nil, refuse("a statement of %d bytes is too long, shorten comment and reference: %d are kept", len(line), maxStatement-1)
		}
		if grown, err = grown.with(int(s.Index), line); err != nil { // #nosec G115 -- bounded by MaxStatements
			return nil, err
		}
		text = append(append(text, line...), '\n')
		again[s.Authority+s.Serial] = s.Index
		made, indexes = append(made, s), append(indexes, s.Index)
	}
	if len(made) == 0 {
		return indexes, nil
	}
	if _, err := l.file.WriteAt(text, l.lines[l.size()]); err != nil {
		return nil, err
	}
	if err := l.secure(l.size()+uint64(len(made)), grown); err != nil {
		return nil, err
	}
	l.hashes = grown
	i := 0
	for line := range bytes.Lines(text) {
		l.take(&made[i], len(line))
		i++
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return indexes, nil
}

func unavailable(cause error) error {
	return fault.New(fault.LogUnavailable, "nothing can be revoked now: the statements can't be written; the CA's operators look at the disk and restart the service").Because(cause)
}

// Line is the statement with an index below the size, in its canonical JSON: for whoever
// has to tell of each once, from an index that they keep.
func (l *Log) Line(index uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index >= l.size() {
		return nil, errors.New("revoke: a statement that isn't there yet")
	}
	b := make([]byte, l.lines[index+1]-l.lines[index]-1)
	_, err := l.file.ReadAt(b, l.lines[index])
	return b, err
}

// Grown is how many statements there are, and a channel that is closed when there are more.
func (l *Log) Grown() (uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size(), l.grown
}

// Size is how many statements there are.
func (l *Log) Size() uint64 {
	size, _ := l.Grown()
	return size
}

// authorities are the key identifiers of those with statements.
func (l *Log) authorities() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.by))
}

// entries are those of one authority, and the size of the log that they are of.
func (l *Log) entries(authority string) ([]entry, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.by[authority]; a != nil {
		return a.entries, l.size()
	}
	return nil, l.size()
}

// republish is how old a checkpoint gets before it is signed again.
const republish = 10 * time.Minute

// Checkpoint is the log's signed checkpoint over all statements.
func (l *Log) Checkpoint(ctx context.Context) (checkpoint.Head, error) {
	l.signing.Lock()
	defer l.signing.Unlock()
	l.mu.Lock()
	size, h, broken := l.size(), l.hashes, l.broken // h only grows beyond its end
	l.mu.Unlock()
	if broken != nil {
		return checkpoint.Head{}, unavailable(broken)
	}
	now := l.now()
	if l.signed.Raw != nil && l.signed.Size == size && now.Sub(l.signed.Signed()) < republish {
		return l.signed, nil
	}
	t, err := tree(size, h)
	if err != nil {
		return checkpoint.Head{}, err
	}
	raw, err := checkpoint.Sign(ctx, l.signer, l.verifier, max(uint64(max(now.UnixMilli(), 0)), l.signed.Timestamp), t)
	if err != nil {
		return checkpoint.Head{}, fault.New(fault.LogUnavailable, "the key of the statements' log can't be used now; what was asked for may be revoked already: ask again").Because(err)
	}
	l.signed, err = checkpoint.Open(raw, l.verifier)
	return l.signed, err
}

// Proof shows that statement index is in the tree of a size (RFC 6962 §2.1.1).
func (l *Log) Proof(index, size uint64) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if size > l.size() || index >= size {
		return nil, errors.New("revoke: a proof of what isn't there")
	}
	proof, err := tlog.ProveRecord(int64(size), int64(index), l.hashes) // #nosec G115 -- within the log
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out, err
}

// close gives up the files.
func (l *Log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, release := range slices.Backward(l.held) {
		errs = append(errs, release())
	}
	l.held, l.broken = nil, errors.New("the log is closed")
	return errors.Join(errs...)
}
