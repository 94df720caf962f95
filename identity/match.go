package identity

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// patternIndex finds the entry whose pattern an issuer has the form of. Its
// cost grows with the number of shapes, of which a configuration has a few,
// and not with the number of patterns.
type patternIndex []shape // the most specific first

// shape is the patterns that have their wildcards at the same places: each of
// them is one key, made of what it writes out.
type shape struct {
	labels, segments []bool // true where a wildcard stands
	wildcards        int
	members          map[string]*issuer // by key
}

// newPatternIndex orders the shapes by the number of their wildcards: patterns
// that match one issuer can be put in order (see checkPair), and of those the
// one with the fewest is the most specific. The order of shapes with as many
// never matters, and is the configuration's.
func newPatternIndex(patterns []*issuer) patternIndex {
	var x patternIndex
	for _, i := range patterns {
		labels, segments := wildcardsIn(i.pattern.labels), wildcardsIn(i.pattern.segments)
		at := slices.IndexFunc(x, func(s shape) bool { return slices.Equal(s.labels, labels) && slices.Equal(s.segments, segments) })
		if at < 0 {
			at = len(x)
			x = append(x, shape{labels: labels, segments: segments, wildcards: i.pattern.wildcards(), members: map[string]*issuer{}})
		}
		key := string(x[at].key(nil, i.pattern.labels, i.pattern.segments))
		x[at].members[key] = x[at].members[key].join(i)
	}
	slices.SortStableFunc(x, func(a, b shape) int { return cmp.Compare(a.wildcards, b.wildcards) })
	return x
}

func wildcardsIn(parts []string) []bool {
	out := make([]bool, len(parts))
	for i, p := range parts {
		out[i] = p == wildcard
	}
	return out
}

// find gives the most specific entry, or nil.
func (x patternIndex) find(url string) *issuer {
	if len(x) == 0 {
		return nil
	}
	host, path, hasPath, ok := hostAndPath(url)
	if !ok {
		return nil
	}
	var parts [2][16]string // few URLs have more parts, and those may cost memory
	labels := cutAll(parts[0][:0], host, ".")
	segments := parts[1][:0]
	if hasPath {
		segments = cutAll(segments, path, "/")
	}
	var space [256]byte
	for n := range x {
		s := &x[n]
		if len(s.labels) != len(labels) || len(s.segments) != len(segments) {
			continue
		}
		i := s.members[string(s.key(space[:0], labels, segments))]
		if i != nil && i.pattern.matchParts(labels, segments) {
			return i
		}
	}
	return nil
}

// join puts i behind the entries for the same issuer, of which head, which may
// be nil, is the first, and returns the first.
func (head *issuer) join(i *issuer) *issuer {
	if head == nil {
		return i
	}
	last := head
	for last.next != nil {
		last = last.next
	}
	last.next = i
	return head
}

// forAudience finds, among the entries for the token's issuer, the one that
// accepts an audience of the token, and that audience. A token that two of them
// accept is refused: which rules it is under would be anybody's choice.
func (head *issuer) forAudience(c claim.Set) (*issuer, string, error) {
	if head.next == nil {
		audience, err := checkAudience(c, head.config.Audiences)
		return head, audience, err
	}
	var found *issuer
	var audience string
	var all []string
	for i := head; i != nil; i = i.next {
		all = append(all, i.config.Audiences...)
		a, err := checkAudience(c, i.config.Audiences)
		switch {
		case err != nil:
		case found != nil:
			return nil, "", fault.New(fault.TokenAudience, "the identity token is for the audiences %s and %s, which stand for different rules here; get one that is for either alone",
				quote(audience), quote(a))
		default:
			found, audience = i, a
		}
	}
	if found == nil {
		_, err := checkAudience(c, all)
		return nil, "", err
	}
	return found, audience, nil
}

// key is what the parts say where the shape has no wildcard. No part holds the
// separator, so parts that differ have keys that differ.
func (s *shape) key(to []byte, labels, segments []string) []byte {
	for i, l := range labels {
		if !s.labels[i] {
			to = append(to, l...)
		}
		to = append(to, '/')
	}
	for i, p := range segments {
		if !s.segments[i] {
			to = append(to, p...)
		}
		to = append(to, '/')
	}
	return to
}

// hostAndPath splits an https URL; ok is false for another scheme.
func hostAndPath(url string) (host, path string, hasPath, ok bool) {
	rest, ok := strings.CutPrefix(url, "https://")
	host, path, hasPath = strings.Cut(rest, "/")
	return host, path, hasPath, ok
}

func cutAll(parts []string, s, separator string) []string {
	for {
		part, rest, more := strings.Cut(s, separator)
		parts = append(parts, part)
		if !more {
			return parts
		}
		s = rest
	}
}
