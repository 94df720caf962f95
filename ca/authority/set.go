package authority

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/lifecycle"
)

// DefaultName is the name of the authority of a configuration that has only one
// and gives it none.
const DefaultName = "default"

// Set is all that a CA has at one time: the authority that signs, and those whose
// certificates its clients are to trust. It never changes; [InForce.Use] puts
// another in its place.
type Set struct {
	// Active signs; never nil.
	Active *Authority
	// Trusted are what the trust bundle and the trusted root show, in the order of
	// their start. Active is among them; distrusted ones are not.
	Trusted []Trusted
	// Chains are the SHA-256 of the first certificates of the configured chains of
	// those that are trusted, by name.
	Chains map[string][sha256.Size]byte
	// Records are the states that they were loaded by; none where the configuration
	// has only one authority.
	Records []lifecycle.Entry
}

// Trusted is one authority as the documents for clients show it.
type Trusted struct {
	// Name is the configured one: [a-z0-9-].
	Name string
	// Chain is in DER, from the issuing certificate to the self-signed root.
	Chain [][]byte
	// Start and End bound when its certificates began that clients are to trust,
	// both included; a zero End is open.
	Start, End time.Time
	// NotBefore and NotAfter bound when all of the chain is valid.
	NotBefore, NotAfter time.Time
	// Renewed says that another follows it without anybody's doing.
	Renewed bool
}

// Single is the set of a CA that has only a: trusted for as long as its chain is
// valid.
func Single(a *Authority) *Set {
	return &Set{Active: a, Trusted: []Trusted{a.Trusted(DefaultName)}}
}

// Trusted is how a is shown under name when it is trusted for as long as its chain
// is valid.
func (a *Authority) Trusted(name string) Trusted {
	return Trusted{Name: name, Chain: a.Chain, Start: a.notBefore, End: a.notAfter, NotBefore: a.notBefore, NotAfter: a.notAfter}
}

// trusted is how a chain is shown that is trusted for as long as it is valid.
func trusted(name string, certs []*x509.Certificate) Trusted {
	t := Trusted{Name: name}
	t.NotBefore, t.NotAfter = window(certs)
	t.Start, t.End = t.NotBefore, t.NotAfter
	for _, c := range certs {
		t.Chain = append(t.Chain, c.Raw)
	}
	return t
}

// sort puts the trusted into the order of the documents.
func (s *Set) sort() {
	slices.SortStableFunc(s.Trusted, func(a, b Trusted) int { return a.Start.Compare(b.Start) })
}

// Roots are the roots of all trusted chains in DER, each once: what a log must
// accept to log what these authorities issue.
func (s *Set) Roots() [][]byte {
	var roots [][]byte
	for _, t := range s.Trusted {
		root := t.Chain[len(t.Chain)-1]
		if !slices.ContainsFunc(roots, func(r []byte) bool { return slices.Equal(r, root) }) {
			roots = append(roots, root)
		}
	}
	return roots
}

// warnAtPercent are the parts of an authority's life, in percent, that are worth a
// warning when no more remains.
var warnAtPercent = []int{30, 10, 0}

// remains is the smallest of warnAtPercent that has come; 100 when none has.
func (t Trusted) remains(now time.Time) int {
	whole, left := t.NotAfter.Sub(t.NotBefore), t.NotAfter.Sub(now)
	reached := 100
	for _, percent := range warnAtPercent {
		if left <= whole/100*time.Duration(percent) {
			reached = percent
		}
	}
	return reached
}

// Expiry says that an authority is near its end, or past it; empty when it isn't.
func (t Trusted) Expiry(now time.Time) string {
	switch percent := t.remains(now); percent {
	case 100:
		return ""
	case 0:
		return "expired"
	default:
		return fmt.Sprintf("less than %d %% of its life remains", percent)
	}
}
