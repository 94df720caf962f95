package tuf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

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
