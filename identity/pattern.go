package identity

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pattern is many issuers: a URL in which `*` stands for one whole host label or
// path segment. It is compiled once and matches without backtracking.
type pattern struct {
	text string
	urlParts
}

// urlParts is an https URL taken apart: the labels of its host, and behind them
// the segments of its path. A final slash makes an empty last segment, so a URL
// with it and one without are different.
type urlParts struct {
	parts  []string
	labels int // how many of parts are labels
}

const wildcard = "*"

// split takes an https URL apart, into the space given; ok is false for another
// scheme.
func split(url string, space []string) (u urlParts, ok bool) {
	rest, ok := strings.CutPrefix(url, "https://")
	host, path, hasPath := strings.Cut(rest, "/")
	u.parts = slices.AppendSeq(space, strings.SplitSeq(host, "."))
	u.labels = len(u.parts)
	if hasPath {
		u.parts = slices.AppendSeq(u.parts, strings.SplitSeq(path, "/"))
	}
	return u, ok
}

// compilePattern reads a pattern and refuses one that could reach a host of
// somebody else's choosing: the last two labels are always written out.
func compilePattern(text string) (pattern, error) {
	u, ok := split(text, nil)
	if !ok {
		return pattern{}, errors.New("must begin with https://")
	}
	if len(text) > maxIssuer {
		return pattern{}, fmt.Errorf("is longer than %d bytes", maxIssuer)
	}
	for i, part := range u.parts {
		switch {
		case part == wildcard && i < u.labels && i >= u.labels-2:
			return pattern{}, errors.New("must write out the last two labels of the host")
		case part == wildcard:
		case i < u.labels && (part == "" || !all(part, hostByte)):
			return pattern{}, errors.New("has a host label that is neither `*` nor lower-case letters, digits, `-` and `_`")
		case i < u.labels, part == "" && i == len(u.parts)-1:
		case part == "" || part == "." || part == ".." || !all(part, segmentLiteral):
			return pattern{}, errors.New("has a path segment that is neither `*` nor letters, digits and `-_.~`")
		}
	}
	if !slices.Contains(u.parts, wildcard) {
		return pattern{}, errors.New("has no `*`; write it as url")
	}
	return pattern{text, u}, nil
}

// match reports whether the whole of an issuer has p's form.
func (p *pattern) match(issuer string) bool {
	u, ok := split(issuer, nil)
	return ok && p.matchParts(u)
}

func (p *pattern) matchParts(u urlParts) bool {
	if len(u.parts) != len(p.parts) || u.labels != p.labels {
		return false
	}
	for i, want := range p.parts {
		if want != u.parts[i] && want != wildcard || want == wildcard && !u.fits(i) {
			return false
		}
	}
	return true
}

// fits reports whether a wildcard may stand for part i.
func (u urlParts) fits(i int) bool {
	accept := segmentByte
	if i < u.labels {
		accept = hostByte
	}
	return u.parts[i] != "" && all(u.parts[i], accept)
}

// hostByte is what a wildcard takes in a host label. Upper case is left out: it
// would give one host two spellings.
func hostByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// segmentByte is what a wildcard takes in a path segment.
func segmentByte(c byte) bool { return hostByte(c) || c >= 'A' && c <= 'Z' }

// segmentLiteral is what a pattern may write out in a path segment.
func segmentLiteral(c byte) bool { return segmentByte(c) || c == '.' || c == '~' }

func all(s string, accept func(byte) bool) bool {
	for i := range len(s) {
		if !accept(s[i]) {
			return false
		}
	}
	return true
}

// relation says how the issuers of two patterns lie to one another.
type relation uint8

const (
	disjoint relation = iota // no issuer matches both
	equal                    // both match the same issuers
	narrower                 // the first matches fewer: it wins
	wider                    // the first matches more
	crossing                 // some match both, some only one, either way
)

// compare is the written rule of precedence: where both patterns match, the one
// that writes out every place the other does, and more, is the most specific.
func (p *pattern) compare(q *pattern) relation {
	if len(p.parts) != len(q.parts) || p.labels != q.labels {
		return disjoint
	}
	pFixes, qFixes := false, false
	for i := range p.parts {
		switch {
		case p.parts[i] == q.parts[i]:
		case q.parts[i] == wildcard && p.fits(i):
			pFixes = true
		case p.parts[i] == wildcard && q.fits(i):
			qFixes = true
		default:
			return disjoint
		}
	}
	switch {
	case pFixes && qFixes:
		return crossing
	case pFixes:
		return narrower
	case qFixes:
		return wider
	default:
		return equal
	}
}

// patternIndex finds the entries whose pattern an issuer has the form of. Its
// cost grows with the number of shapes, of which a configuration has a few,
// and not with the number of patterns.
type patternIndex []shape // the most specific first

// shape is the patterns that have their wildcards at the same places as its first.
type shape struct {
	pattern
	entries map[string][]*issuer // by what the pattern writes out; several for one pattern differ in their audiences
}

// newPatternIndex orders the shapes by the number of their wildcards: patterns
// that match one issuer can be put in order (see checkPair), and of those the
// one with the fewest is the most specific. The order of shapes with as many
// never matters, and is the configuration's.
func newPatternIndex(patterns []*issuer) (x patternIndex) {
	for _, i := range patterns {
		at := slices.IndexFunc(x, func(s shape) bool {
			return s.labels == i.pattern.labels && slices.EqualFunc(s.parts, i.pattern.parts, func(a, b string) bool { return (a == wildcard) == (b == wildcard) })
		})
		if at < 0 {
			at = len(x)
			x = append(x, shape{i.pattern, map[string][]*issuer{}})
		}
		key := string(x[at].key(nil, i.pattern.parts))
		x[at].entries[key] = append(x[at].entries[key], i)
	}
	slices.SortStableFunc(x, func(a, b shape) int {
		return cmp.Compare(strings.Count(a.text, wildcard), strings.Count(b.text, wildcard))
	})
	return x
}

// find gives the entries of the most specific pattern, or none.
func (x patternIndex) find(url string) []*issuer {
	var parts [32]string // few URLs have more parts, and those may cost memory
	u, ok := split(url, parts[:0])
	var space [256]byte
	for n := range x {
		s := &x[n]
		if !ok || s.labels != u.labels || len(s.parts) != len(u.parts) {
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
		if s.parts[i] != wildcard {
			to = append(to, part...)
		}
		to = append(to, '/')
	}
	return to
}
