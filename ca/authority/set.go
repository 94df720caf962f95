package ca

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
)

// DefaultName is the name of the authority of a configuration that has only one
// and gives it none.
const DefaultName = "default"

// Authorities are all that a CA has at one time: the one that signs, and those
// whose certificates its clients are to trust. They never change; [Issuer.Use]
// puts others in their place.
type Authorities struct {
	// Active signs; never nil.
	Active *Authority
	// Listed are what the trust bundle and the trusted root show, in the order of
	// their start. Active is among them; distrusted ones are not.
	Listed []Listed
	// Records are the states that they were loaded by; none where the configuration
	// has only one authority.
	Records []lifecycle.Entry
}

// Listed is one authority as the documents for clients show it.
type Listed struct {
	// Name is the configured one: [a-z0-9-].
	Name string
	// Chain is in DER, from the issuing certificate to the self-signed root.
	Chain [][]byte
	// Start and End bound when its certificates began that clients are to trust,
	// both included; a zero End is open.
	Start, End time.Time
	// NotBefore and NotAfter bound when all of the chain is valid.
	NotBefore, NotAfter time.Time
	// Renewed says that it is followed by another without anybody's doing.
	Renewed bool
}

// One are the authorities of a CA that has only a: listed for as long as its
// chain is valid.
func One(a *Authority) *Authorities {
	return &Authorities{Active: a, Listed: []Listed{a.Listed(DefaultName)}}
}

// Listed is how a is shown under name when it is listed for as long as its chain is valid.
func (a *Authority) Listed(name string) Listed {
	return Listed{Name: name, Chain: a.chain, Start: a.notBefore, End: a.notAfter, NotBefore: a.notBefore, NotAfter: a.notAfter}
}

// Sort puts the listed into the order of the documents.
func (a *Authorities) Sort() {
	slices.SortStableFunc(a.Listed, func(x, y Listed) int { return x.Start.Compare(y.Start) })
}

// Roots are the roots of all listed chains in DER, each once: what a log must
// accept to log what these authorities issue.
func (a *Authorities) Roots() [][]byte {
	var roots [][]byte
	for _, l := range a.Listed {
		root := l.Chain[len(l.Chain)-1]
		if !slices.ContainsFunc(roots, func(r []byte) bool { return slices.Equal(r, root) }) {
			roots = append(roots, root)
		}
	}
	return roots
}

// lease counts who uses an authority's key: its owner, and each request that
// reads it. The last to leave closes the key.
type lease struct {
	holders atomic.Int64
	signer  kms.Signer
}

func newLease(s kms.Signer) *lease {
	l := &lease{signer: s}
	l.holders.Store(1) // the owner
	return l
}

// take adds a holder; it is false when the last has left.
func (l *lease) take() bool {
	for {
		n := l.holders.Load()
		if n == 0 {
			return false
		}
		if l.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave ends one holding.
func (l *lease) leave() {
	if l.holders.Add(-1) == 0 {
		kms.Close(l.signer)
	}
}

// Close ends the owner's use of a's key: it is closed when the last request that
// still signs with it has ended. An authority is closed once.
func (a *Authority) Close() { a.lease.leave() }

// acquire is the authority for one request, to be released when it ends: a
// rotation meanwhile neither changes it nor closes its key.
func (i *Issuer) acquire() (*Authority, error) {
	for {
		a := i.current.Load().Active
		if a.lease.take() {
			return a, nil
		}
		if i.current.Load().Active == a {
			return nil, errors.New("ca: the authority in force was closed")
		}
	}
}

func (a *Authority) release() { a.lease.leave() }

// Use puts authorities in force for every request that begins from now on;
// requests under way end with what they began with. The Issuer owns what it is
// given: when a later Use has another Active, the key of this one is closed once
// the last request that reads it has ended.
func (i *Issuer) Use(next *Authorities) {
	i.using.Lock()
	defer i.using.Unlock()
	before := i.current.Swap(next)
	i.wake()
	i.metrics.list(next)
	if before != nil && before.Active.lease != next.Active.lease {
		before.Active.Close()
	}
}

// Authorities are those in force. Callers must not write to them.
func (i *Issuer) Authorities() *Authorities { return i.current.Load() }

// Chains are the chains that verify what this Issuer signs, has signed or will
// sign, each in DER from the issuing certificate to the root: the trust bundle.
func (i *Issuer) Chains() [][][]byte {
	var chains [][][]byte
	for _, l := range i.current.Load().Listed {
		chains = append(chains, l.Chain)
	}
	return chains
}
