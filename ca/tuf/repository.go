package tuf

import (
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// stateName is the file that says which versions are in force. It is written last:
// without it a file beside it counts for nothing.
const stateName = "published.json"

// state is what the state file says.
type state struct {
	// Version is of the file's form.
	Version int `yaml:"version"`
	// Root and Targets are the versions in force, Published when they came to be.
	Root      int64     `yaml:"root"`
	Targets   int64     `yaml:"targets"`
	Published time.Time `yaml:"published"`
	// Listed is since when clients have been told of what they verify by.
	Listed []listed `yaml:"listed"`
}

type listed struct {
	SHA256 string    `yaml:"sha256"`          // of a certificate, or of a log's key
	Since  time.Time `yaml:"since,omitempty"` // unless from the first publication on: every client knows it
}

const stateVersion = 1

// ErrNothing is wrapped by the error of Load for a folder in which nothing was published.
var ErrNothing = errors.New("nothing is published in it yet: make and publish a first root with `mayfly tuf init`, `sign` and `publish`")

// Repository is what was published: verified from the first root on, whatever has
// expired since. It doesn't change.
type Repository struct {
	root    *rootMetadata // the last
	targets *targetsMetadata
	files   contents
	state   state
	paths   map[string][]byte // what is served and doesn't change, by its path below Prefix
}

// Load reads the repository in a folder. Its errors continue a sentence that begins
// with the folder's name.
func Load(dir string) (*Repository, error) {
	var s state
	if err := statefile.Read(filepath.Join(dir, stateName), stateVersion, &s); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNothing
	} else if err != nil {
		return nil, err
	}
	left := int64(maxBytes)
	return assemble(s, func(path string) ([]byte, error) {
		b, err := durable.ReadPlain(filepath.Join(dir, filepath.FromSlash(path)), maxBytes)
		if left -= int64(len(b)); err == nil && left < 0 {
			err = fmt.Errorf("%s and the files before it are larger than %d bytes together", path, maxBytes)
		}
		return b, err
	})
}

// assemble makes a repository of what a state says is in force, and verifies it.
func assemble(s state, from func(path string) ([]byte, error)) (*Repository, error) {
	r := &Repository{state: s, paths: make(map[string][]byte)}
	read := func(path string) (b []byte, err error) {
		b, err = from(path)
		r.paths[path] = b
		return b, err
	}
	for v := int64(1); v <= r.state.Root; v++ {
		path := versioned(v, metadata.ROOT)
		b, err := read(path)
		if err != nil {
			return nil, err
		}
		if err := r.addRoot(v, b); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if r.root == nil {
		return nil, fmt.Errorf("%s names no root", stateName)
	}
	path := versioned(r.state.Targets, metadata.TARGETS)
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	if r.targets, err = decodeTargets(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.files = contents{}
	for name, one := range r.targets.Signed.Targets {
		if one == nil || strings.ContainsAny(name, `/\`) {
			return nil, fmt.Errorf("%s: the target %q can't be a file", path, name)
		}
		b, err := read(hashed(name, one))
		if err != nil {
			return nil, err
		}
		r.files[name] = string(b)
	}
	if r.targets.Signed.Version != r.state.Targets {
		return nil, fmt.Errorf("%s has version %d", path, r.targets.Signed.Version)
	}
	if err := checkThreshold(r.root, metadata.TARGETS, "targets", r.targets); err != nil {
		return nil, err
	}
	return r, r.files.belongTo(r.targets)
}

// addRoot takes the root of a version, which follows the last one.
func (r *Repository) addRoot(version int64, b []byte) error {
	next, err := decodeRoot(b)
	if err != nil {
		return err
	}
	if next.Signed.Version != version {
		return fmt.Errorf("has version %d", next.Signed.Version)
	}
	if r.root != nil {
		if err := checkThreshold(r.root, metadata.ROOT, "it, by the keys of the root before,", next); err != nil {
			return err
		}
	}
	r.root = next
	return checkThreshold(next, metadata.ROOT, "it", next)
}

// versioned is the path of a role's metadata (§6.2 of the specification).
func versioned(version int64, role string) string { return fmt.Sprintf("%d.%s.json", version, role) }

// hashed is the path of a target.
func hashed(name string, f *metadata.TargetFiles) string {
	file := strings.LastIndex(name, "/") + 1
	return "targets/" + name[:file] + hex.EncodeToString(f.Hashes["sha256"]) + "." + name[file:]
}

// FirstRoot is 1.root.json, with which a client begins.
func (r *Repository) FirstRoot() []byte { return r.paths[versioned(1, metadata.ROOT)] }

// CheckOnlineKey is nil when clients take what the key signs for a snapshot.
func (r *Repository) CheckOnlineKey(public crypto.PublicKey) error {
	id, err := KeyID(public)
	if err != nil {
		return err
	}
	if online := r.root.Signed.Roles[metadata.TIMESTAMP].KeyIDs[0]; online != id {
		return fmt.Errorf("the key %s isn't the online key of root %d, %s: name that one, or have people sign a root with this one (mayfly tuf rotate-root)",
			short(id), r.state.Root, short(online))
	}
	return nil
}

// Keys are who signs under the root in force.
func (r *Repository) Keys() (Keys, error) { return keysOf(r.root) }

func keysOf(root *rootMetadata) (k Keys, err error) {
	of := func(role string) (all []crypto.PublicKey) {
		for _, id := range root.Signed.Roles[role].KeyIDs {
			public, failed := root.Signed.Keys[id].ToPublicKey()
			all, err = append(all, public), errors.Join(err, failed)
		}
		return all
	}
	k = Keys{of(metadata.ROOT), of(metadata.TARGETS), root.Signed.Roles[metadata.ROOT].Threshold, of(metadata.TIMESTAMP)[0]}
	return k, err
}

// Drift is how the documents differ from those that were published.
func (r *Repository) Drift(d trustroot.Documents) ([]Change, error) {
	files, err := newContents(d)
	if err != nil {
		return nil, err
	}
	return difference(r.files, files)
}

// Same reports whether r and other are one publication.
func (r *Repository) Same(other *Repository) bool {
	return other != nil && r.state.Root == other.state.Root && r.state.Targets == other.state.Targets && r.state.Published.Equal(other.state.Published)
}

// Listed is since when the published trust root has listed a certificate, or a log's
// key, by the SHA-256 of it, which is zero for what every client has known from its
// first root on; false where it isn't listed.
func (r *Repository) Listed(sum [32]byte) (time.Time, bool) {
	for _, l := range r.state.Listed {
		if l.SHA256 == hex.EncodeToString(sum[:]) {
			return l.Since, true
		}
	}
	return time.Time{}, false
}

// Role is how one role stands.
type Role struct {
	Name      string
	Version   int64
	Expires   time.Time
	Life      time.Duration // what it was given when it was signed
	Threshold int
	Keys      []string // their ids
}

// Remains is the part of the life that is left at a time, in percent.
func (r Role) Remains(now time.Time) int { return int(r.Expires.Sub(now) * 100 / r.Life) }

// Expired reports whether clients refuse what the role has signed.
func (r Role) Expired(now time.Time) bool { return !now.Before(r.Expires) }

// lives are what roles are given when they are signed.
var lives = map[string]time.Duration{metadata.ROOT: RootLife, metadata.TARGETS: TargetsLife, metadata.SNAPSHOT: OnlineLife, metadata.TIMESTAMP: OnlineLife}

func roleOf(root *rootMetadata, name string, version int64, expires time.Time) Role {
	signed := root.Signed.Roles[name]
	return Role{name, version, expires, lives[name], signed.Threshold, signed.KeyIDs}
}

// Roles are those that people sign.
func (r *Repository) Roles() []Role {
	return []Role{
		roleOf(r.root, metadata.ROOT, r.root.Signed.Version, r.root.Signed.Expires),
		roleOf(r.root, metadata.TARGETS, r.targets.Signed.Version, r.targets.Signed.Expires),
	}
}

// Old reports whether less than half of the life of what people sign is left.
func (r *Repository) Old(now time.Time) bool {
	return slices.ContainsFunc(r.Roles(), func(role Role) bool { return role.Remains(now) < warnBelow })
}

// Published is when what is in force was published.
func (r *Repository) Published() time.Time { return r.state.Published }

// follows is nil when a client that has seen before takes r.
func (r *Repository) follows(before *Repository) error {
	if before == nil {
		return nil
	}
	if r.state.Root < before.state.Root || r.state.Targets < before.state.Targets || string(r.FirstRoot()) != string(before.FirstRoot()) {
		return fmt.Errorf("has root %d and targets %d, and clients have seen root %d and targets %d of a repository: restore it",
			r.state.Root, r.state.Targets, before.state.Root, before.state.Targets)
	}
	return nil
}

// Publish puts a draft in force in the repository of a folder, if enough keys have
// signed and a TUF client takes it: one that begins with the first root, and one that
// has what was in force before. The online key signs what the client reads. With an
// error what was in force stays.
func Publish(ctx context.Context, dir string, d *Draft, online kms.Signer, now time.Time) (*Repository, error) {
	if err := durable.MakeFolder(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := statefile.Open(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	before, err := Load(dir)
	if errors.Is(err, ErrNothing) {
		before, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", dir, err)
	}
	next, err := before.with(d, now.UTC().Truncate(time.Second))
	if err != nil {
		return nil, err
	}
	if err := next.try(ctx, before, online, now); err != nil {
		return nil, fmt.Errorf("a TUF client refuses the result, and nothing is published: %w", err)
	}
	return next, next.write(dir, file)
}

// with is the repository with a draft in force; r is nil at the beginning.
func (r *Repository) with(d *Draft, now time.Time) (*Repository, error) {
	next, paths := state{Version: stateVersion, Root: 1, Targets: d.targets.Signed.Version, Published: now}, make(map[string][]byte)
	at := int64(0)
	if r != nil {
		at, next.Root = r.state.Targets, r.state.Root
		maps.Copy(paths, r.paths)
	}
	if at+1 != d.targets.Signed.Version || (r == nil) != (d.after.root == nil) || r != nil && (!same(r.root, d.after.root) || !same(r.targets, d.after.targets)) {
		return nil, fmt.Errorf("targets %d is in force, and the draft has targets %d of another beginning or after others: stage it anew", at, d.targets.Signed.Version)
	}
	if err := d.complete(now); err != nil {
		return nil, err
	}
	var err error
	if d.root != nil {
		next.Root = d.root.Signed.Version
		if paths[versioned(next.Root, metadata.ROOT)], err = encode(d.root); err != nil {
			return nil, err
		}
	}
	if paths[versioned(next.Targets, metadata.TARGETS)], err = encode(d.targets); err != nil {
		return nil, err
	}
	for name, one := range d.targets.Signed.Targets {
		paths[hashed(name, one)] = []byte(d.files[name])
	}
	all, err := assemble(next, func(path string) ([]byte, error) { return paths[path], nil })
	if err != nil {
		return nil, err
	}
	return all, all.list(r)
}

// complete is nil when enough keys have signed all of the draft, and nothing of it
// has expired.
func (d *Draft) complete(now time.Time) error {
	errs := []error{d.check()}
	for _, s := range d.Standings() {
		errs = append(errs, s.check())
	}
	root := d.effectiveRoot()
	if !now.Before(root.Signed.Expires) {
		errs = append(errs, fmt.Errorf("root %d has expired at %s: no client takes anything under it; make the next with `mayfly tuf rotate-root`", root.Signed.Version, stamp(root.Signed.Expires)))
	}
	if !now.Before(d.targets.Signed.Expires) {
		errs = append(errs, fmt.Errorf("targets %d has expired at %s: stage it anew", d.targets.Signed.Version, stamp(d.targets.Signed.Expires)))
	}
	return errors.Join(errs...)
}

// list sets since when everything is listed.
func (r *Repository) list(before *Repository) error {
	parsed, err := r.files.parse()
	if err != nil {
		return err
	}
	for _, sum := range parsed.sums() {
		entry := listed{SHA256: sum}
		if before != nil {
			entry.Since = r.state.Published
			if i := slices.IndexFunc(before.state.Listed, func(l listed) bool { return l.SHA256 == sum }); i >= 0 {
				entry = before.state.Listed[i]
			}
		}
		r.state.Listed = append(r.state.Listed, entry)
	}
	return nil
}

// write puts the files where they belong, and then in force.
func (r *Repository) write(dir string, file *statefile.File) error {
	if err := durable.MakeFolder(filepath.Join(dir, "targets"), 0o755); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(r.paths)) {
		if err := writeOnce(filepath.Join(dir, filepath.FromSlash(path)), r.paths[path]); err != nil {
			return err
		}
	}
	return file.Write(&r.state)
}

// writeOnce writes a file whose name says what it holds. One that a run left which
// was cut short, and that never was in force, is replaced.
func writeOnce(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	return durable.Put(path, b, 0o644)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
