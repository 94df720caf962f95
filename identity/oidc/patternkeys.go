package identity

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Bounds on the issuers of one pattern: a token may name any of them before
// its signature is checked, so their number and pace are limited.
const (
	maxMembers    = 1024 // key rings kept
	newMemberRate = 5    // new ones a second
	newMemberMost = 20   // new ones at once
	memberIdle    = time.Hour
)

// family is the key rings of the issuers that one pattern matched so far.
type family struct {
	open    func(issuer string) *keyring
	now     func() time.Time
	limiter *rate.Limiter

	mu      sync.Mutex
	members map[string]*keyring
}

func newFamily(now func() time.Time, open func(issuer string) *keyring) *family {
	return &family{open: open, now: now, limiter: rate.NewLimiter(newMemberRate, newMemberMost), members: map[string]*keyring{}}
}

// keyring finds or makes the ring of an issuer that the pattern matches.
func (f *family) keyring(issuer string) (*keyring, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.members[issuer]; k != nil {
		return k, nil
	}
	now := f.now()
	if !f.limiter.AllowN(now, 1) {
		return nil, fault.New(fault.IssuerUnavailable, "too many new issuers at once; try again").With("dependency", "issuer").After(time.Second)
	}
	if len(f.members) >= maxMembers {
		f.evict()
	}
	k := f.open(issuer)
	k.used.Store(now.Unix())
	f.members[issuer] = k
	return k, nil
}

// evict drops the ring that is missed least: one that never got keys before one
// that did, then the one that was used the longest ago.
func (f *family) evict() {
	var victim *keyring
	worse := func(a, b *keyring) bool {
		if aCold, bCold := a.keys.Load() == nil, b.keys.Load() == nil; aCold != bCold {
			return aCold
		}
		return a.used.Load() < b.used.Load()
	}
	for _, k := range f.members {
		if victim == nil || worse(k, victim) {
			victim = k
		}
	}
	if victim != nil {
		delete(f.members, victim.issuer)
	}
}

// active drops the rings that are idle and returns those that aren't.
func (f *family) active() []*keyring {
	f.mu.Lock()
	defer f.mu.Unlock()
	oldest := f.now().Add(-memberIdle).Unix()
	var out []*keyring
	for name, k := range f.members {
		switch {
		case k.used.Load() < oldest:
			delete(f.members, name)
		case k.keys.Load() != nil:
			out = append(out, k)
		}
	}
	return out
}
