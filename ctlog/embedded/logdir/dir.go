// Package logdir is the directory of an embedded log: the names, forms and proofs of
// what Tessera and we keep there, the lock that one writer holds, and the high-water
// mark beside it. It decides nothing: package embedded writes a log, package read
// serves it, and package maintain checks, copies and freezes it.
package logdir

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Names in a log's directory. Tessera chose those of the state.
const (
	CheckpointName = layout.CheckpointPath
	TileDir        = "tile"
	IssuerDir      = "issuer"
	StateDir       = ".state"
	TreeStateName  = "treeState"
	OwnerName      = "log.v3.json"
	FrozenName     = "frozen.json" // the log is complete, and nothing opens it for writing

	lockName = "LOCK"
)

// Dir is the directory of a log. Its methods hold nothing open.
type Dir string

// EmptyTree is where each log starts (RFC 6962 §2.1: the hash of the empty string).
func EmptyTree() checkpoint.Tree { return checkpoint.Tree{Root: rfc6962.DefaultHasher.EmptyRoot()} }

// Path is the path of a name in the directory.
func (d Dir) Path(names ...string) string {
	return filepath.Join(append([]string{string(d)}, names...)...)
}

// Exists reports whether something is there under the name; an error that is
// not "no such file" counts as something.
func (d Dir) Exists(names ...string) bool {
	_, err := os.Lstat(d.Path(names...))
	return !errors.Is(err, os.ErrNotExist)
}

// Make makes the directory, if it isn't there.
func (d Dir) Make() error {
	if err := durable.MakeFolder(string(d), 0o755); err != nil { // the log is public
		return fmt.Errorf("making the directory: %w", err)
	}
	return nil
}

// Put writes a file and its folders. The file is whole and on disk when Put
// returns, or not there.
func (d Dir) Put(data []byte, names ...string) error {
	path := d.Path(names...)
	if err := durable.MakeFolder(filepath.Dir(path), 0o755); err != nil { // the log is public
		return err
	}
	return writeDurably(path, data)
}

func writeDurably(path string, data []byte) error {
	if err := durable.Put(path, data, 0o644); err != nil { // the log is public
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// parts are the names of a log's own things in its directory.
var parts = []string{
	StateDir, CheckpointName, TileDir, IssuerDir, OwnerName, FrozenName, lockName,
}

// Own gives everything in the directory that is a log's to the owner of the directory.
func (d Dir) Own() error {
	for _, name := range parts {
		if !d.Exists(name) {
			continue
		}
		if err := durable.OwnerAsFolderAll(d.Path(name)); err != nil {
			return err
		}
	}
	return nil
}

// Occupied is the name of something that is in the directory already and is neither a
// file system's nor a lock of nobody; "" when a log or a backup may be put there.
func (d Dir) Occupied() (string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	for _, e := range entries {
		if name := e.Name(); name != lockName && !durable.OfTheSystem(name) {
			return name, nil
		}
	}
	return "", err
}

// Probe writes a file to the log's disk and removes it again.
func (d Dir) Probe() error {
	path := d.Path(StateDir, durable.TempPrefix+"probe")
	if err := writeDurably(path, make([]byte, 4096)); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the probe: %w", err)
	}
	return nil
}

// Sweep removes what a crash left unfinished, and counts it: files that their writer would
// have renamed. They were never part of the log, and never served. It also removes
// the partial tiles that Collect should have, of a log that has published so many entries.
func (d Dir) Sweep(published uint64) (removed int, err error) {
	err = filepath.WalkDir(string(d), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(string(d), path)
		if err == nil && entry.IsDir() && (durable.OfTheSystem(entry.Name()) || filepath.Dir(name) == "." && name != "." && !slices.Contains(parts, name)) {
			return fs.SkipDir // not ours, and maybe not to be read
		}
		if full, partial := strings.CutSuffix(name, ".p"); err == nil && entry.IsDir() && partial {
			if t, ok := ParseTilePath(full); ok && t.Within(published) {
				if err := os.RemoveAll(path); err != nil { //nolint:gosec // G122: as below
					return err
				}
				removed++
				return fs.SkipDir
			}
		}
		if err != nil || entry.IsDir() || !strings.HasPrefix(entry.Name(), durable.TempPrefix) {
			return err
		}
		removed++
		return os.Remove(path) //nolint:gosec // G122: nobody else writes in the log's own folder
	})
	if err != nil {
		return removed, fmt.Errorf("sweeping unfinished files: %w", err)
	}
	return removed, nil
}

// readJSON reads a file; what says in words what it has.
func (d Dir) readJSON(what string, into any, names ...string) error {
	raw, err := os.ReadFile(d.Path(names...))
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	return nil
}

// Owner is the file that says whose log a directory holds. It is served, so that a
// reader of the log finds its key.
type Owner struct {
	Origin string `json:"description"`
	LogID  []byte `json:"log_id"`
	Key    []byte `json:"key"` // DER SubjectPublicKeyInfo
	URL    string `json:"url"`
}

// Owner reads whose log it is. It shows what is there, not that it is right.
func (d Dir) Owner() (Owner, error) {
	var o Owner
	return o, d.readJSON("whose log this is", &o, OwnerName)
}

// PutOwner writes whose log it is.
func (d Dir) PutOwner(o Owner) error {
	raw, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("describing the log: %w", err)
	}
	return d.Put(append(raw, '\n'), OwnerName)
}

// Head is the published checkpoint, and whose it is as the directory states it.
func (d Dir) Head() (owner Owner, head checkpoint.Head, err error) {
	if owner, err = d.Owner(); err != nil {
		return owner, head, err
	}
	key, err := ctlog.ParseKey(owner.Key)
	if err != nil {
		return owner, head, err
	}
	verifier, err := checkpoint.NewVerifier(owner.Origin, key)
	if err == nil {
		head, err = d.OpenCheckpoint(verifier)
	}
	return owner, head, err
}

// OpenCheckpoint reads the published checkpoint, with its cosignatures, and verifies it;
// os.ErrNotExist when there is none.
func (d Dir) OpenCheckpoint(v note.Verifier) (checkpoint.Head, error) {
	raw, err := os.ReadFile(d.Path(CheckpointName))
	if err != nil {
		return checkpoint.Head{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return checkpoint.Open(raw, v)
}

// Tree is the state, the file of which is Tessera's, that the storage goes on from.
func (d Dir) Tree() (checkpoint.Tree, error) {
	var t checkpoint.Tree
	if err := d.readJSON("the log's state", &t, StateDir, TreeStateName); err != nil {
		return checkpoint.Tree{}, err
	}
	if len(t.Root) != rfc6962.DefaultHasher.Size() {
		return checkpoint.Tree{}, fmt.Errorf("reading the log's state: the root has %d bytes, want %d", len(t.Root), rfc6962.DefaultHasher.Size())
	}
	return t, nil
}

// PutTree writes the state that the storage goes on from.
func (d Dir) PutTree(t checkpoint.Tree) error {
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return d.Put(raw, StateDir, TreeStateName)
}

// Issuers keeps the certificates above the entries, each once, under its
// SHA-256 (c2sp.org/static-ct-api: issuer/<fingerprint>).
type Issuers struct {
	dir   Dir        // the log's
	mu    sync.Mutex // one writer
	known sync.Map   // [32]byte → []byte: DER that this process has made durable
	cache sync.Map   // the same, for what was only read
}

// Issuers are those of the log.
func (d Dir) Issuers() *Issuers { return &Issuers{dir: d} }

// Keep stores the certificates that are new, durably, and returns all fingerprints.
func (s *Issuers) Keep(chain [][]byte) ([][32]byte, error) {
	out := make([][32]byte, len(chain))
	for i, der := range chain {
		out[i] = sha256.Sum256(der)
		if _, ok := s.known.Load(out[i]); ok {
			continue
		}
		if err := s.write(out[i], der); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Get reads a certificate by its fingerprint; os.ErrNotExist when there is none.
func (s *Issuers) Get(fingerprint [32]byte) ([]byte, error) {
	if der, ok := s.known.Load(fingerprint); ok {
		return der.([]byte), nil //nolint:forcetypeassert // only write stores, and only that
	}
	if der, ok := s.cache.Load(fingerprint); ok {
		return der.([]byte), nil //nolint:forcetypeassert // only this function stores, and only that
	}
	der, err := os.ReadFile(s.dir.Path(IssuerDir, hex.EncodeToString(fingerprint[:])))
	if err != nil {
		return nil, fmt.Errorf("reading an issuer: %w", err)
	}
	if sha256.Sum256(der) != fingerprint {
		return nil, fmt.Errorf("the issuer %x is damaged: its hash is another", fingerprint)
	}
	s.cache.Store(fingerprint, der)
	return der, nil
}

// Certificate is Get, parsed.
func (s *Issuers) Certificate(fingerprint [32]byte) (*x509.Certificate, error) {
	der, err := s.Get(fingerprint)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the issuer %x: %w", fingerprint, err)
	}
	return c, nil
}

func (s *Issuers) write(fingerprint [32]byte, der []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known.Load(fingerprint); ok {
		return nil // another submission was faster
	}
	if err := s.dir.Put(der, IssuerDir, hex.EncodeToString(fingerprint[:])); err != nil {
		return fmt.Errorf("storing an issuer: %w", err)
	}
	s.known.Store(fingerprint, der)
	return nil
}
