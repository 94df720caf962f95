package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pattern is a family of issuers: a URL in which `*` stands for one whole host
// label or path segment. It is compiled once and matches without backtracking.
type pattern struct {
	text   string
	labels []string // of the host; "*" is the wildcard
	// segments is of the path. A final slash makes an empty last one, so a
	// pattern with it and one without are different.
	segments []string
}

const wildcard = "*"

// compilePattern reads a pattern and refuses one that could reach a host of
// somebody else's choosing: the last two labels are always written out.
func compilePattern(text string) (pattern, error) {
	rest, ok := strings.CutPrefix(text, "https://")
	if !ok {
		return pattern{}, errors.New("must begin with https://")
	}
	if len(text) > maxIssuer {
		return pattern{}, fmt.Errorf("is longer than %d bytes", maxIssuer)
	}
	host, path, hasPath := strings.Cut(rest, "/")
	p := pattern{text: text, labels: strings.Split(host, ".")}
	if hasPath {
		p.segments = strings.Split(path, "/")
	}
	for i, l := range p.labels {
		if l == wildcard && i >= len(p.labels)-2 {
			return pattern{}, errors.New("must write out the last two labels of the host")
		}
		if l != wildcard && (l == "" || !all(l, hostByte)) {
			return pattern{}, errors.New("has a host label that is neither `*` nor lower-case letters, digits, `-` and `_`")
		}
	}
	for i, s := range p.segments {
		if s == wildcard || s == "" && i == len(p.segments)-1 {
			continue
		}
		if s == "" || s == "." || s == ".." || !all(s, segmentLiteral) {
			return pattern{}, errors.New("has a path segment that is neither `*` nor letters, digits and `-_.~`")
		}
	}
	if !slices.Contains(p.labels, wildcard) && !slices.Contains(p.segments, wildcard) {
		return pattern{}, errors.New("has no `*`; write it as url")
	}
	return p, nil
}

// match reports whether the whole of issuer has p's form.
func (p pattern) match(issuer string) bool {
	host, path, hasPath, ok := hostAndPath(issuer)
	if !ok {
		return false
	}
	var segments []string
	if hasPath {
		segments = strings.Split(path, "/")
	}
	return p.matchParts(strings.Split(host, "."), segments)
}

// matchParts is match for an issuer that is split already.
func (p *pattern) matchParts(labels, segments []string) bool {
	return len(labels) == len(p.labels) && len(segments) == len(p.segments) &&
		matchAll(p.labels, labels, hostByte) && matchAll(p.segments, segments, segmentByte)
}

func matchAll(want, got []string, accept func(byte) bool) bool {
	for i := range want {
		if want[i] != wildcard && got[i] != want[i] {
			return false
		}
	}
	for i := range want { // what costs more comes last
		if want[i] == wildcard && (got[i] == "" || !all(got[i], accept)) {
			return false
		}
	}
	return true
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
func (p pattern) compare(q pattern) relation {
	if len(p.labels) != len(q.labels) || len(p.segments) != len(q.segments) {
		return disjoint
	}
	pFixes, qFixes := false, false
	each := func(a, b []string, accept func(byte) bool) bool {
		for i := range a {
			switch {
			case a[i] == b[i]:
			case b[i] == wildcard && a[i] != "" && all(a[i], accept):
				pFixes = true
			case a[i] == wildcard && b[i] != "" && all(b[i], accept):
				qFixes = true
			default:
				return false
			}
		}
		return true
	}
	if !each(p.labels, q.labels, hostByte) || !each(p.segments, q.segments, segmentByte) {
		return disjoint
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

// wildcards counts the places left open. Among patterns that match one issuer
// and can be put in order, the most specific has the fewest.
func (p pattern) wildcards() int {
	n := 0
	for _, parts := range [][]string{p.labels, p.segments} {
		for _, s := range parts {
			if s == wildcard {
				n++
			}
		}
	}
	return n
}
