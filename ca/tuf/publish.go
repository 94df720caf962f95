package tuf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

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
	next := &Repository{paths: make(map[string][]byte)}
	next.state = state{Version: stateVersion, Targets: d.targets.Signed.Version, Published: now}
	at, roots := int64(0), []*rootMetadata(nil)
	if r != nil {
		at = r.state.Targets
		roots = slices.Clone(r.roots)
		for v := range int64(len(r.roots)) {
			path := versioned(v+1, metadata.ROOT)
			next.paths[path] = r.paths[path]
		}
	}
	if at+1 != d.targets.Signed.Version || (r == nil) != (d.after.root == nil) || r != nil && (!same(r.root, d.after.root) || !same(r.targets, d.after.targets)) {
		return nil, fmt.Errorf("targets %d is in force, and the draft has targets %d of another beginning or after others: stage it anew", at, d.targets.Signed.Version)
	}
	if err := d.complete(now); err != nil {
		return nil, err
	}
	next.inForce = inForce{roots, d.effectiveRoot(), d.targets, d.files}
	if d.root != nil {
		next.roots = append(roots, d.root)
		b, err := encode(d.root)
		if err != nil {
			return nil, err
		}
		next.paths[versioned(d.root.Signed.Version, metadata.ROOT)] = b
	}
	next.state.Root = int64(len(next.roots))
	b, err := encode(d.targets)
	if err != nil {
		return nil, err
	}
	next.paths[versioned(d.targets.Signed.Version, metadata.TARGETS)] = b
	for name, one := range d.targets.Signed.Targets {
		next.paths[hashed(name, one)] = []byte(d.files[name])
	}
	return next, next.list(r)
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
