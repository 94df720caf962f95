package tuf

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// Draft is what is to be published: targets, and root where that changes too, with
// all that whoever signs needs to judge it. It is one file, which is carried to the
// keys and back.
type Draft struct {
	root    *rootMetadata // nil where the one in force stays
	targets *targetsMetadata
	files   contents
	after   inForce // zero at the beginning
}

// inForce is what a draft follows.
type inForce struct {
	root    *rootMetadata
	targets *targetsMetadata
	files   contents
}

// draftVersion is of the form of a draft's file.
const draftVersion = 1

// draftFile is a draft as it is carried; InForce is what it follows.
type draftFile struct {
	Version int             `json:"tuf_draft,omitempty"`
	Root    json.RawMessage `json:"root,omitempty"`
	Targets json.RawMessage `json:"targets"`
	Files   contents        `json:"files"`
	InForce *draftFile      `json:"in_force,omitempty"`
}

// Keys are who signs root and targets: any Threshold of Root, and of Targets.
type Keys struct {
	Root, Targets []crypto.PublicKey
	Threshold     int
	Online        crypto.PublicKey // signs snapshot and timestamp
}

// Init is the draft of a repository's first root and targets.
func Init(k Keys, d trustroot.Documents, now time.Time) (*Draft, error) {
	files, err := newContents(d)
	if err != nil {
		return nil, err
	}
	return newDraft(inForce{}, &k, files, now)
}

// Stage is the draft of the next targets, with the documents d. What was published
// and isn't in them is refused, unless remove is set.
func Stage(r *Repository, d trustroot.Documents, remove bool, now time.Time) (*Draft, error) {
	files, err := newContents(d)
	if err != nil {
		return nil, err
	}
	draft, err := newDraft(r.inForce, nil, files, now)
	if err != nil {
		return nil, err
	}
	if !remove {
		err = lost(r.files, files, now)
	}
	return draft, err
}

// Renew is the draft of the next targets with the documents d, whatever they leave
// out, and of the next root where that is old: for a repository that is tried out.
func Renew(r *Repository, d trustroot.Documents, now time.Time) (*Draft, error) {
	if !r.Old(now) {
		return Stage(r, d, true, now)
	}
	files, err := newContents(d)
	if err != nil {
		return nil, err
	}
	k, err := r.Keys()
	if err != nil {
		return nil, err
	}
	return newDraft(r.inForce, &k, files, now)
}

// Rotate is the draft of the next root, with the keys k, and of targets with the
// content in force. Enough keys of the root in force sign it, and enough of the new.
func Rotate(r *Repository, k Keys, now time.Time) (*Draft, error) {
	return newDraft(r.inForce, &k, r.files, now)
}

func newDraft(after inForce, k *Keys, files contents, now time.Time) (*Draft, error) {
	d := &Draft{files: files, after: after}
	now = now.UTC().Truncate(time.Second)
	if k != nil {
		var err error
		if d.root, err = newRoot(*k, after.root, now); err != nil {
			return nil, err
		}
	}
	root := d.effectiveRoot()
	d.targets = metadata.Targets(now.Add(TargetsLife))
	if after.targets != nil {
		d.targets.Signed.Version = after.targets.Signed.Version + 1
	}
	parsed, err := files.parse()
	if err != nil {
		return nil, err
	}
	custom := parsed.custom()
	for name, text := range files {
		target, err := metadata.TargetFile().FromBytes(name, []byte(text), "sha256")
		if err != nil {
			return nil, fmt.Errorf("tuf: %w", err)
		}
		if one, ok := custom[name]; ok {
			target.Custom = &one
		}
		d.targets.Signed.Targets[name] = target
	}
	online := root.Signed.Roles[metadata.TIMESTAMP].KeyIDs
	d.targets.Signed.Delegations = &metadata.Delegations{
		Keys:  map[string]*metadata.Key{online[0]: root.Signed.Keys[online[0]]},
		Roles: []metadata.DelegatedRole{{Name: crlRole, KeyIDs: online, Threshold: 1, Terminating: true, Paths: []string{crlRole + "/*"}}},
	}
	return d, d.check()
}

func newRoot(k Keys, before *rootMetadata, now time.Time) (*rootMetadata, error) {
	root := metadata.Root(now.Add(RootLife))
	if before != nil {
		root.Signed.Version = before.Signed.Version + 1
	}
	online := []crypto.PublicKey{k.Online}
	for role, keys := range map[string][]crypto.PublicKey{
		metadata.ROOT: k.Root, metadata.TARGETS: k.Targets, metadata.SNAPSHOT: online, metadata.TIMESTAMP: online,
	} {
		for _, public := range keys {
			key, id, err := newKey(public)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", role, err)
			}
			if slices.Contains(root.Signed.Roles[role].KeyIDs, id) {
				return nil, fmt.Errorf("%s: the key %s is named twice: name different keys", role, short(id))
			}
			if err := root.Signed.AddKey(key, role); err != nil {
				return nil, fmt.Errorf("tuf: %w", err)
			}
		}
	}
	root.Signed.Roles[metadata.ROOT].Threshold = k.Threshold
	root.Signed.Roles[metadata.TARGETS].Threshold = k.Threshold
	online0 := root.Signed.Roles[metadata.TIMESTAMP].KeyIDs[0]
	for _, role := range []string{metadata.ROOT, metadata.TARGETS} {
		if slices.Contains(root.Signed.Roles[role].KeyIDs, online0) {
			return nil, fmt.Errorf("%s: the key %s is the online key, which the service holds: name another", role, short(online0))
		}
	}
	return root, checkRoot(root)
}

// effectiveRoot is the root under which targets are signed.
func (d *Draft) effectiveRoot() *rootMetadata {
	if d.root != nil {
		return d.root
	}
	return d.after.root
}

// check wants the parts of a draft to belong together.
func (d *Draft) check() error {
	root, targets := d.effectiveRoot(), d.targets
	if root == nil || targets == nil {
		return errors.New("the draft has no root, or no targets")
	}
	nextRoot, nextTargets := int64(1), int64(1)
	if d.after.root != nil {
		nextRoot, nextTargets = d.after.root.Signed.Version+1, d.after.targets.Signed.Version+1
		if err := d.after.check(); err != nil {
			return fmt.Errorf("what the draft follows: %w", err)
		}
	}
	if d.root != nil && d.root.Signed.Version != nextRoot || targets.Signed.Version != nextTargets {
		return fmt.Errorf("the draft doesn't follow what is in force: root %d and targets %d would", nextRoot, nextTargets)
	}
	if err := d.files.belongTo(targets); err != nil {
		return err
	}
	return d.files.check()
}

func (f *inForce) check() error {
	if err := checkThreshold(f.root, metadata.TARGETS, "targets", f.targets); err != nil {
		return err
	}
	return f.files.belongTo(f.targets)
}

// belongTo is nil when c are exactly the files that targets lists.
func (c contents) belongTo(targets *targetsMetadata) error {
	if len(targets.Signed.Targets) != len(c) {
		return fmt.Errorf("targets %d lists %d files, and there are %d", targets.Signed.Version, len(targets.Signed.Targets), len(c))
	}
	for name, listed := range targets.Signed.Targets {
		if listed == nil || listed.VerifyLengthHashes([]byte(c[name])) != nil {
			return fmt.Errorf("%s isn't the file that targets %d lists", name, targets.Signed.Version)
		}
	}
	return nil
}

// ParseDraft reads a draft's file. The error continues a sentence that begins with
// its name.
func ParseDraft(b []byte) (*Draft, error) {
	var f draftFile
	in := json.NewDecoder(bytes.NewReader(b))
	in.DisallowUnknownFields()
	if err := in.Decode(&f); len(b) > maxBytes || err != nil || !errors.Is(in.Decode(new(any)), io.EOF) {
		return nil, errors.New("isn't a draft as `mayfly tuf init`, `stage` or `rotate-root` writes it")
	}
	if f.Version != draftVersion {
		return nil, fmt.Errorf("is a draft of version %d; this Mayfly knows %d: another one wrote it", f.Version, draftVersion)
	}
	next, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("has a %w", err)
	}
	d := &Draft{root: next.root, targets: next.targets, files: next.files}
	if f.InForce != nil {
		if d.after, err = f.InForce.read(); err == nil && d.after.root == nil {
			err = errNotMetadata
		}
		if err != nil {
			return nil, fmt.Errorf("follows a %w", err)
		}
	}
	return d, d.check()
}

func (f *draftFile) read() (is inForce, err error) {
	is.files = f.Files
	if len(f.Root) > 0 {
		if is.root, err = decodeRoot(f.Root); err != nil {
			return is, fmt.Errorf("root that can't be used: %w", err)
		}
	}
	if is.targets, err = decodeTargets(f.Targets); err != nil {
		return is, fmt.Errorf("targets that can't be used: %w", err)
	}
	return is, nil
}

func (f *draftFile) set(is inForce) (err error) {
	f.Files = is.files
	if is.root != nil {
		if f.Root, err = encode(is.root); err != nil {
			return err
		}
	}
	f.Targets, err = encode(is.targets)
	return err
}

// Format is the draft's file.
func (d *Draft) Format() ([]byte, error) {
	f := draftFile{Version: draftVersion}
	err := f.set(inForce{d.root, d.targets, d.files})
	if d.after.root != nil {
		f.InForce = new(draftFile)
		err = errors.Join(err, f.InForce.set(d.after))
	}
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(f, "", " ")
	return append(b, '\n'), err
}

// Changes is what clients will see differently.
func (d *Draft) Changes() ([]Change, error) { return difference(d.after.files, d.files) }

// Sign adds the key's signatures to all that it may sign, and says to what.
func (d *Draft) Sign(ctx context.Context, key kms.Signer) (signed []string, err error) {
	id, err := KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	root := d.effectiveRoot()
	holds := func(r *rootMetadata, role string) bool {
		return r != nil && slices.Contains(r.Signed.Roles[role].KeyIDs, id)
	}
	if d.root != nil && (holds(d.root, metadata.ROOT) || holds(d.after.root, metadata.ROOT)) {
		if err := sign(ctx, d.root, key); err != nil {
			return nil, err
		}
		signed = append(signed, fmt.Sprintf("root %d", d.root.Signed.Version))
	}
	// By the keys of the root before too: a client may read the new targets when it has
	// just asked for the next root in vain.
	if holds(root, metadata.TARGETS) || holds(d.after.root, metadata.TARGETS) {
		if err := sign(ctx, d.targets, key); err != nil {
			return nil, err
		}
		signed = append(signed, fmt.Sprintf("targets %d", d.targets.Signed.Version))
	}
	if len(signed) > 0 {
		return signed, nil
	}
	var roles []string
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		if holds(root, role) {
			roles = append(roles, role)
		}
	}
	if len(roles) > 0 {
		return nil, fmt.Errorf("the key %s is for %v and signs nothing of this draft", short(id), roles)
	}
	return nil, fmt.Errorf("the key %s is none of those that sign this draft: %s", short(id),
		KeyNames(slices.Compact(slices.Sorted(slices.Values(slices.Concat(root.Signed.Roles[metadata.ROOT].KeyIDs, root.Signed.Roles[metadata.TARGETS].KeyIDs))))))
}

// Standing is how far the signatures of one role are.
type Standing struct {
	Role          string // "root 2", "root 2 by the keys of root 1", "targets 5"
	Expires       time.Time
	Need          int
	Have, Missing []string // key ids
}

// Standings are what a draft needs.
func (d *Draft) Standings() []Standing {
	var all []Standing
	if d.root != nil {
		what := fmt.Sprintf("root %d", d.root.Signed.Version)
		all = append(all, standing(d.root, metadata.ROOT, what, d.root.Signed.Expires, d.root))
		if before := d.after.root; before != nil {
			all = append(all, standing(before, metadata.ROOT, fmt.Sprintf("%s by the keys of root %d", what, before.Signed.Version), d.root.Signed.Expires, d.root))
		}
	}
	return append(all, standing(d.effectiveRoot(), metadata.TARGETS, fmt.Sprintf("targets %d", d.targets.Signed.Version), d.targets.Signed.Expires, d.targets))
}

func standing[T metadata.Roles](root *rootMetadata, role, what string, expires time.Time, m *metadata.Metadata[T]) Standing {
	s := Standing{Role: what, Expires: expires, Need: root.Signed.Roles[role].Threshold}
	s.Have, s.Missing = signers(root, role, m)
	return s
}

// Merge is one draft with the signatures of all, which are copies of one draft.
func Merge(drafts []*Draft) (*Draft, error) {
	all := *drafts[0]
	for _, other := range drafts[1:] {
		if !all.same(other) {
			return nil, errors.New("the drafts aren't copies of one: give those that were made together")
		}
		if all.root != nil {
			all.root.Signatures = union(all.root.Signatures, other.root.Signatures)
		}
		all.targets.Signatures = union(all.targets.Signatures, other.targets.Signatures)
	}
	return &all, nil
}

// same reports whether the signatures of two drafts are of the same content.
func (d *Draft) same(other *Draft) bool {
	unsigned := func(d *Draft) []byte {
		plain := Draft{files: d.files, after: d.after, targets: &targetsMetadata{Signed: d.targets.Signed}}
		if d.root != nil {
			plain.root = &rootMetadata{Signed: d.root.Signed}
		}
		b, _ := plain.Format() // it was formatted before
		return b
	}
	return bytes.Equal(unsigned(d), unsigned(other))
}

func union(a, b []metadata.Signature) []metadata.Signature {
	by := make(map[string]metadata.Signature)
	for _, s := range slices.Concat(b, a) {
		by[s.KeyID] = s
	}
	return slices.SortedFunc(maps.Values(by), func(a, b metadata.Signature) int { return bytes.Compare([]byte(a.KeyID), []byte(b.KeyID)) })
}
