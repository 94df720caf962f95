package tuf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
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
	after   *Repository // what it follows; an empty one at the beginning
}

// draftVersion is of the form of a draft's file.
const draftVersion = 2

// draftFile is a draft as it is carried.
type draftFile struct {
	Version int             `json:"tuf_draft"`
	Root    json.RawMessage `json:"root,omitempty"`
	Targets json.RawMessage `json:"targets"`
	Files   contents        `json:"files"`
	InForce *inForce        `json:"in_force,omitempty"`
}

// inForce is the repository that a draft follows: its versions, and its files by path.
type inForce struct {
	Root    int64             `json:"root"`
	Targets int64             `json:"targets"`
	Files   map[string]string `json:"files"`
}

// Keys are who signs root and targets: any Threshold of Root, and of Targets.
type Keys struct {
	Root, Targets []crypto.PublicKey
	Threshold     int
	Online        crypto.PublicKey // signs snapshot and timestamp
}

// Init is the draft of a repository's first root and targets.
func Init(k Keys, d trustroot.Documents, now time.Time) (*Draft, error) {
	return newDraft(new(Repository), &k, &d, now)
}

// Stage is the draft of the next targets, with the documents d. What was published
// and isn't in them is refused, unless remove is set, or it is of the gap.
func Stage(r *Repository, d trustroot.Documents, remove bool, gap []trustroot.Gap, now time.Time) (*Draft, error) {
	draft, err := newDraft(r, nil, &d, now)
	if err == nil && !remove {
		err = lost(r.files, draft.files, gap, now)
	}
	return draft, err
}

// Renew is the draft of the next targets with the documents d, whatever they leave
// out, and of the next root where that is old: for a repository that is tried out.
func Renew(r *Repository, d trustroot.Documents, now time.Time) (*Draft, error) {
	if !r.Old(now) {
		return Stage(r, d, true, nil, now)
	}
	k, err := r.Keys()
	if err != nil {
		return nil, err
	}
	return newDraft(r, &k, &d, now)
}

// Rotate is the draft of the next root, with the keys k, and of targets with the
// content in force. Enough keys of the root in force sign it, and enough of the new.
func Rotate(r *Repository, k Keys, now time.Time) (*Draft, error) {
	return newDraft(r, &k, nil, now)
}

// newDraft follows after: with the same keys or files where there are no others.
func newDraft(after *Repository, k *Keys, documents *trustroot.Documents, now time.Time) (_ *Draft, err error) {
	d := &Draft{files: after.files, after: after}
	if documents != nil {
		if d.files, err = newContents(*documents); err != nil {
			return nil, err
		}
	}
	nextRoot, nextTargets := after.next()
	if k != nil {
		if d.root, err = newRoot(*k, nextRoot, now.Add(RootLife)); err != nil {
			return nil, err
		}
	}
	if d.targets, err = newTargets(d.effectiveRoot(), d.files, nextTargets, now.Add(TargetsLife)); err != nil {
		return nil, err
	}
	return d, d.check()
}

// next are the versions of what follows.
func (r *Repository) next() (root, targets int64) { return r.state.Root + 1, r.state.Targets + 1 }

// newTargets lists the files, and lets the online key sign what is below crl/.
func newTargets(root *rootMetadata, files contents, version int64, expires time.Time) (*targetsMetadata, error) {
	t := metadata.Targets(expires.UTC().Truncate(time.Second))
	t.Signed.Version = version
	parsed, err := files.parse()
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		target, err := metadata.TargetFile().FromBytes(name, []byte(text), "sha256")
		if err != nil {
			return nil, fmt.Errorf("tuf: %w", err)
		}
		t.Signed.Targets[name] = target
	}
	for _, one := range parsed.history.LegacyTargets() { // what older clients find them by
		custom, _ := json.Marshal(one.Custom) // text alone, which always encodes
		if target := t.Signed.Targets[one.Name]; target != nil {
			target.Custom = (*json.RawMessage)(&custom)
		}
	}
	online := root.Signed.Roles[metadata.TIMESTAMP].KeyIDs
	t.Signed.Delegations = &metadata.Delegations{
		Keys:  map[string]*metadata.Key{online[0]: root.Signed.Keys[online[0]]},
		Roles: []metadata.DelegatedRole{{Name: crlRole, KeyIDs: online, Threshold: 1, Terminating: true, Paths: []string{crlRole + "/*"}}},
	}
	return t, nil
}

func newRoot(k Keys, version int64, expires time.Time) (*rootMetadata, error) {
	root := metadata.Root(expires.UTC().Truncate(time.Second))
	root.Signed.Version = version
	_, onlineID, err := newKey(k.Online)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadata.TIMESTAMP, err)
	}
	online := []crypto.PublicKey{k.Online}
	for role, keys := range map[string][]crypto.PublicKey{
		metadata.ROOT: k.Root, metadata.TARGETS: k.Targets, metadata.SNAPSHOT: online, metadata.TIMESTAMP: online,
	} {
		for _, public := range keys {
			key, id, err := newKey(public)
			switch people := role == metadata.ROOT || role == metadata.TARGETS; {
			case err != nil:
				return nil, fmt.Errorf("%s: %w", role, err)
			case slices.Contains(root.Signed.Roles[role].KeyIDs, id):
				return nil, fmt.Errorf("%s: the key %s is named twice: name different keys", role, short(id))
			case people && id == onlineID:
				return nil, fmt.Errorf("%s: the key %s is the online key, which the service holds: name another", role, short(id))
			}
			if err := root.Signed.AddKey(key, role); err != nil {
				return nil, fmt.Errorf("tuf: %w", err)
			}
		}
	}
	root.Signed.Roles[metadata.ROOT].Threshold = k.Threshold
	root.Signed.Roles[metadata.TARGETS].Threshold = k.Threshold
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
	nextRoot, nextTargets := d.after.next()
	if d.root != nil && d.root.Signed.Version != nextRoot || targets.Signed.Version != nextTargets {
		return fmt.Errorf("the draft doesn't follow what is in force: root %d and targets %d would", nextRoot, nextTargets)
	}
	if err := d.files.belongTo(targets); err != nil {
		return err
	}
	if err := d.files.check(); err != nil {
		return err
	}
	return d.rebuilt()
}

// rebuilt is nil when what is signed is, to the byte, what this Mayfly makes of what
// people are shown: keys and threshold, files, and the times of expiry.
func (d *Draft) rebuilt() error {
	if d.root != nil {
		k, err := keysOf(d.root)
		if err != nil {
			return err
		}
		if again, err := newRoot(k, d.root.Signed.Version, d.root.Signed.Expires); err != nil || !same(again, d.root) {
			return errors.Join(fmt.Errorf("root %d isn't what this Mayfly makes of its keys: draft it anew", d.root.Signed.Version), err)
		}
	}
	if again, err := newTargets(d.effectiveRoot(), d.files, d.targets.Signed.Version, d.targets.Signed.Expires); err != nil || !same(again, d.targets) {
		return errors.Join(fmt.Errorf("targets %d isn't what this Mayfly makes of its files: stage it anew", d.targets.Signed.Version), err)
	}
	return nil
}

// same reports whether the signatures of two are of the same bytes.
func same[T metadata.Roles](a, b *metadata.Metadata[T]) bool {
	x, errX := cjson.EncodeCanonical(a.Signed)
	y, errY := cjson.EncodeCanonical(b.Signed)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// prune takes out of m what isn't signed, and signatures that count under none of the roots.
func prune[T metadata.Roles](m *metadata.Metadata[T], role string, roots ...*rootMetadata) {
	var count []string
	for _, root := range roots {
		have, _ := signers(root, role, m)
		count = append(count, have...)
	}
	m.UnrecognizedFields = nil
	m.Signatures = slices.DeleteFunc(m.Signatures, func(s metadata.Signature) bool {
		return len(s.UnrecognizedFields) > 0 || !slices.Contains(count, s.KeyID)
	})
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
	err := in.Decode(&f)
	other := f.Version != 0 && f.Version != draftVersion // whose other members aren't known
	if !other && (len(b) > maxBytes || err != nil || !errors.Is(in.Decode(new(any)), io.EOF)) {
		return nil, errors.New("isn't a draft as `mayfly tuf init`, `stage` or `rotate-root` writes it")
	}
	if f.Version != draftVersion {
		return nil, fmt.Errorf("is a draft of version %d; this Mayfly knows %d: another one wrote it", f.Version, draftVersion)
	}
	d := &Draft{files: f.Files, after: new(Repository)}
	if len(f.Root) > 0 {
		if d.root, err = decodeRoot(f.Root); err != nil {
			return nil, fmt.Errorf("has a root that can't be used: %w", err)
		}
	}
	if d.targets, err = decodeTargets(f.Targets); err != nil {
		return nil, fmt.Errorf("has targets that can't be used: %w", err)
	}
	if is := f.InForce; is != nil {
		d.after, err = assemble(state{Root: is.Root, Targets: is.Targets}, func(path string) ([]byte, error) { return []byte(is.Files[path]), nil })
		if err != nil {
			return nil, fmt.Errorf("follows a repository that can't be used: %w", err)
		}
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	roots := slices.DeleteFunc([]*rootMetadata{d.after.root, d.root}, func(r *rootMetadata) bool { return r == nil })
	prune(d.targets, metadata.TARGETS, roots...)
	if d.root != nil {
		prune(d.root, metadata.ROOT, roots...)
	}
	return d, nil
}

// Format is the draft's file.
func (d *Draft) Format() ([]byte, error) {
	var errs []error
	text := func(b []byte, err error) json.RawMessage { errs = append(errs, err); return b }
	f := draftFile{Version: draftVersion, Targets: text(encode(d.targets)), Files: d.files}
	if d.root != nil {
		f.Root = text(encode(d.root))
	}
	if r := d.after; r.root != nil {
		f.InForce = &inForce{r.state.Root, r.state.Targets, make(map[string]string)}
		for path, b := range r.paths {
			f.InForce.Files[path] = string(b)
		}
	}
	b, err := json.MarshalIndent(f, "", " ")
	return append(b, '\n'), errors.Join(append(errs, err)...)
}

// Changes is what clients will see differently, and who signs from then on.
func (d *Draft) Changes() ([]Change, error) {
	all, err := difference(d.after.files, d.files)
	return append(changed(whoSigns(d.after.root), whoSigns(d.effectiveRoot())), all...), err
}

// whoSigns are the lines of a root.
func whoSigns(root *rootMetadata) (all []entry) {
	if root == nil {
		return nil
	}
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		role := root.Signed.Roles[name]
		all = append(all, entry{id: name, words: fmt.Sprintf("%s needs %d signatures", name, role.Threshold)})
		for _, id := range slices.Sorted(slices.Values(role.KeyIDs)) {
			words := fmt.Sprintf("key %s signs %s", id, name)
			all = append(all, entry{id: words, words: words})
		}
	}
	return all
}

// Follows is the SHA-256 of the 1.root.json of the repository that the draft is for,
// which nobody else can have made; zero for the draft of a beginning.
func (d *Draft) Follows() [32]byte {
	if d.after.root == nil {
		return [32]byte{}
	}
	return sha256.Sum256(d.after.FirstRoot())
}

// Sign adds the key's signatures to all that it may sign, and says to what.
func (d *Draft) Sign(ctx context.Context, key kms.Signer) (signed []string, err error) {
	id, err := KeyID(key.Public())
	if err == nil {
		err = d.check()
	}
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
