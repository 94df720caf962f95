package wal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/merkle/compact"
)

// Follow gives the entries of a log that are promised, or may be, and aren't in the
// tree that its state has, and the range that ends with the last of them. It refuses
// what doesn't reach the mark or isn't the tree that the mark has seen: an SCT may have
// left for whatever the mark covers. It only reads.
//
// Cut off is only what was being written when the process or the machine died: a last
// frame beyond the mark that isn't whole. File and mark are written together, and
// nothing leaves before both are durable, so one may lack the last frame; then the
// other has it.
func Follow(ctx context.Context, d logdir.Dir, tree checkpoint.Tree, high logdir.High) ([]logdir.Entry, *compact.Range, error) {
	end, err := d.Range(ctx, tree.Size)
	if err != nil {
		return nil, nil, err
	}
	if high.Size <= tree.Size {
		if err := d.GrewFrom(ctx, high.Tree, tree); err != nil {
			return nil, nil, err
		}
	}
	frames, err := read(d, tree.Size)
	if err != nil {
		return nil, nil, err
	}
	last := tree.Size
	if len(frames) > 0 {
		last = frames[len(frames)-1].End()
	}
	if len(high.Entries) > 0 && high.First <= last && last < high.Size {
		frames = append(frames, Frame{First: high.First, Count: uint32(high.Size - high.First), Entries: high.Entries, Root: high.Root})
	}
	var entries []logdir.Entry
	for _, f := range frames {
		leaves, err := logdir.ParseEntries(f.Entries, f.First)
		if err != nil || len(leaves) != int(f.Count) {
			return nil, nil, errors.Join(fmt.Errorf("the write-ahead file's entries from %d on are damaged", f.First), err)
		}
		for i, l := range leaves {
			if f.First+uint64(i) < end.End() {
				continue
			}
			e := logdir.Entry{Raw: l.Raw, Hash: l.Hash()}
			if err := end.Append(e.Hash, nil); err != nil {
				return nil, nil, fmt.Errorf("following the write-ahead file: %w", err)
			}
			entries = append(entries, e)
			if err := verify(end, high.Tree, checkpoint.Tree{Size: f.End(), Root: f.Root}); err != nil {
				return nil, nil, err
			}
		}
	}
	if end.End() < high.Size {
		return nil, nil, fmt.Errorf("the log has %d entries, %d of them in its tree, but had %d before: an older copy", end.End(), tree.Size, high.Size)
	}
	return entries, end, nil
}

// verify compares the range with those of the trees that are as large.
func verify(r *compact.Range, trees ...checkpoint.Tree) error {
	for _, t := range trees {
		if t.Size != r.End() {
			continue
		}
		now, err := logdir.TreeOf(r)
		if err != nil {
			return err
		}
		if !bytes.Equal(now.Root, t.Root) {
			return fmt.Errorf("the log of %d entries has another root than before: it was forked, or is damaged", t.Size)
		}
	}
	return nil
}

// read gives the frames that end beyond an index, which follow each other without a gap.
func read(d logdir.Dir, from uint64) ([]Frame, error) {
	var frames []Frame
	for _, name := range names {
		path := d.Path(logdir.StateDir, name)
		s, err := openSegment(path, from)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, errNoSegment): // the mark says whether that is enough
			continue
		case err != nil:
			return nil, fmt.Errorf("reading the write-ahead file: %w", err)
		case s.lost > 0:
			return nil, fmt.Errorf("the write-ahead file %s is damaged: its entries at byte %d can't be read, and others follow them", path, s.lost)
		}
		frames = append(frames, s.frames...)
	}
	slices.SortFunc(frames, func(a, b Frame) int { return cmp.Compare(a.First, b.First) })
	for i, f := range frames {
		if f.First > from || i > 0 && f.First != from {
			return nil, fmt.Errorf("the write-ahead file goes on with entry %d where entry %d is expected: the tree is an older copy, or a part of the file is lost", f.First, from)
		}
		from = f.End()
	}
	return frames, nil
}

func openSegment(path string, from uint64) (s segment, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readSegment(f, segmentSize, from)
}
