package identity

import (
	"cmp"
	"slices"
)

// patternIndex finds the entries whose pattern an issuer has the form of. Its
// cost grows with the number of shapes, of which a configuration has a few,
// and not with the number of patterns.
type patternIndex []shape // the most specific first

// shape is the patterns that have their wildcards at the same places: each of
// them is one key, made of what it writes out.
type shape struct {
	open      []bool // the parts that are wildcards
	labels    int
	wildcards int                  // how many are open
	entries   map[string][]*issuer // by key; several for one pattern differ in their audiences
}

// newPatternIndex orders the shapes by the number of their wildcards: patterns
// that match one issuer can be put in order (see checkPair), and of those the
// one with the fewest is the most specific. The order of shapes with as many
// never matters, and is the configuration's.
func newPatternIndex(patterns []*issuer) patternIndex {
	var x patternIndex
	for _, i := range patterns {
		s := shape{open: make([]bool, len(i.pattern.parts)), labels: i.pattern.labels, entries: map[string][]*issuer{}}
		for n, part := range i.pattern.parts {
			if s.open[n] = part == wildcard; s.open[n] {
				s.wildcards++
			}
		}
		at := slices.IndexFunc(x, func(o shape) bool { return o.labels == s.labels && slices.Equal(o.open, s.open) })
		if at < 0 {
			at = len(x)
			x = append(x, s)
		}
		key := string(x[at].key(nil, i.pattern.parts))
		x[at].entries[key] = append(x[at].entries[key], i)
	}
	slices.SortStableFunc(x, func(a, b shape) int { return cmp.Compare(a.wildcards, b.wildcards) })
	return x
}

// find gives the entries of the most specific pattern, or none.
func (x patternIndex) find(url string) []*issuer {
	if len(x) == 0 {
		return nil
	}
	var parts [32]string // few URLs have more parts, and those may cost memory
	u, ok := split(url, parts[:0])
	if !ok {
		return nil
	}
	var space [256]byte
	for n := range x {
		s := &x[n]
		if s.labels != u.labels || len(s.open) != len(u.parts) {
			continue
		}
		entries := s.entries[string(s.key(space[:0], u.parts))]
		if len(entries) > 0 && entries[0].pattern.matchParts(u) {
			return entries
		}
	}
	return nil
}

// key is what the parts say where the shape has no wildcard. No part holds the
// separator, so parts that differ have keys that differ.
func (s *shape) key(to []byte, parts []string) []byte {
	for i, part := range parts {
		if !s.open[i] {
			to = append(to, part...)
		}
		to = append(to, '/')
	}
	return to
}
