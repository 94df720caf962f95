package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// look follows the log to its present end.
func (f *Follower) look(ctx context.Context, l *source) error {
	at, err := f.o.Keeper.Position(ctx, l.Description)
	if err != nil {
		return err
	}
	f.at(l, at.Size, 0)
	tree, err := ranges.NewRange(0, at.Size, slices.Clone(at.Hashes))
	if err != nil {
		return fmt.Errorf("the position in the store: %w", err)
	}
	head, err := l.Head(ctx)
	if err != nil {
		return err
	}
	f.at(l, at.Size, head.Size)
	older, err := f.compare(ctx, l, at, head)
	if err != nil || older {
		return err
	}
	for tree.End() < head.Size {
		if err := f.batch(ctx, l, tree, head); err != nil {
			return err
		}
		f.at(l, tree.End(), head.Size)
	}
	return nil
}

// compare shows that the log's head continues the one that was verified last. older is
// true where it is one from before, as a cache or a replica of the log has: there is
// nothing to do then.
func (f *Follower) compare(ctx context.Context, l *source, at Position, head remote.Head) (older bool, err error) {
	if at.Checkpoint == nil {
		return false, nil
	}
	last, err := checkpoint.Open(at.Checkpoint, l.Verifier)
	if err != nil {
		return false, fmt.Errorf("the checkpoint in the store: %w", err)
	}
	e := Evidence{Followed: at.Checkpoint, Shown: head.Raw}
	switch {
	case head.Size < last.Size && head.Timestamp <= last.Timestamp:
		return true, nil
	case head.Size < last.Size:
		return false, f.contradiction(l, kindBack, e, "the log has %d entries, and had %d before", head.Size, last.Size)
	case head.Size == last.Size && !bytes.Equal(head.Root, last.Root):
		return false, f.contradiction(l, kindFork, e, "the log has two trees of %d entries", head.Size)
	case head.Size == last.Size || last.Size == 0:
		return false, nil
	}
	return false, f.consistent(ctx, l, last.Tree, head, e)
}

// consistent shows that tree is a beginning of the one that head signed.
func (f *Follower) consistent(ctx context.Context, l *source, tree checkpoint.Tree, head remote.Head, e Evidence) error {
	if tree.Size == head.Size {
		if !bytes.Equal(tree.Root, head.Root) {
			return f.contradiction(l, kindFork, e, "the log's %d entries don't make the root that it signed", tree.Size)
		}
		return nil
	}
	path, err := l.consistency(ctx, tree.Size, head)
	if err != nil {
		return f.withheld(l, e, fmt.Errorf("the proof from %d to %d entries: %w", tree.Size, head.Size, err))
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, tree.Size, head.Size, path, tree.Root, head.Root); err != nil {
		e.Proof = path
		return f.contradiction(l, kindFork, e, "the log's tree of %d entries doesn't begin with the %d that were there before", head.Size, tree.Size)
	}
	return nil
}

// batch follows the next entries: tree grows by them once the Keeper has them.
func (f *Follower) batch(ctx context.Context, l *source, tree *compact.Range, head remote.Head) error {
	from := tree.End()
	e := Evidence{Shown: head.Raw, From: from}
	leaves, err := l.leaves(ctx, from, head)
	if err != nil {
		return f.withheld(l, e, err)
	}
	entries := make([]Entry, len(leaves))
	for i, leaf := range leaves {
		entries[i], err = parseLeaf(leaf)
		entries[i].Index = from + uint64(i)
		if err != nil {
			e.Leaf = leaf
			return f.contradiction(l, kindEntry, e, "entry %d can't be read: %v", entries[i].Index, err)
		}
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
			return err
		}
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return err
	}
	e.Root = root
	if err := f.consistent(ctx, l, checkpoint.Tree{Size: tree.End(), Root: root}, head, e); err != nil {
		return err
	}
	return f.o.Keeper.Keep(ctx, l.Description, from, entries, Position{Size: tree.End(), Hashes: slices.Clone(tree.Hashes()), Checkpoint: head.Raw})
}

// withheld makes a contradiction of what the log lacks of a tree that it signed, and of
// what it gives in no form that a log may; other errors are passed on.
func (f *Follower) withheld(l *source, e Evidence, err error) error {
	switch {
	case errors.Is(err, remote.ErrAbsent):
		return f.contradiction(l, kindWithheld, e, "the log doesn't show what it signed: %v", err)
	case errors.Is(err, errMalformed):
		return f.contradiction(l, kindEntry, e, "%v", err)
	}
	return err
}
