package identity

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Replay remembers which tokens were used, for issuers whose tokens are
// accepted once. Several replicas need one that they share.
type Replay interface {
	// Use marks a token as used, in one step, and reports whether it wasn't
	// before. id stands for the token; it may be forgotten after until. An
	// error means that this can't be known, and the token is refused with it: a
	// *fault.Error as it is, any other as ours.
	Use(ctx context.Context, id [sha256.Size]byte, until time.Time) (first bool, err error)
}

// tokenID stands for a token of an issuer: its `jti` (RFC 7519 §4.1.7), or else
// what its signature is over. The signature isn't part of it: an ECDSA
// signature can be changed into another good one by anybody.
func tokenID(issuer string, t *oidc.Token) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(issuer)) // holds no NUL: it was matched with the configuration
	if jti := t.Claims.Get("jti"); jti.Kind() == claim.String && jti.Literal() != "" {
		h.Write([]byte("\x00jti\x00" + jti.Literal()))
	} else {
		h.Write([]byte("\x00token\x00" + t.Signed))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// once refuses a good token of the entry's that was used before.
func (v *Verifier) once(ctx context.Context, i *issuer, url string, t *oidc.Token) error {
	exp, _, err := numericDate(t.Claims, "exp")
	if err != nil {
		return err
	}
	id, until := tokenID(url, t), exp.Add(i.config.Leeway)
	var first bool
	if v.options.Replay != nil {
		first, err = v.options.Replay.Use(ctx, id, until)
	} else {
		first, err = v.used.use(owner{i.name(), url}, id, until)
	}
	switch {
	case err != nil:
		return err
	case !first:
		return fault.New(fault.TokenReplayed, "the identity token was used before, and this issuer's tokens are accepted once; get a new token")
	}
	return nil
}

// maxRemembered bounds a memory, in tokens: some 25 MiB.
const maxRemembered = 200_000

// memory remembers used tokens inside the process, which replicas and restarts
// don't share. It never forgets a token that may still be used again: when an
// issuer's share is full of those, it refuses that issuer's new ones.
type memory struct {
	now  func() time.Time
	most int

	mu    sync.Mutex
	used  map[[sha256.Size]byte]struct{}
	ends  expiries       // the same tokens, the first to end on top
	count map[string]int // of the same tokens, by entry and by the issuer of a pattern
}

// owner is whom a token is remembered for: an entry of the configuration, and the
// issuer, which is another text where the entry is a pattern.
type owner struct{ entry, issuer string }

func newMemory(now func() time.Time, most int) *memory {
	return &memory{now: now, most: most, used: make(map[[sha256.Size]byte]struct{}), count: make(map[string]int)}
}

// use is [Replay] for the tokens of an owner.
func (m *memory) use(of owner, id [sha256.Size]byte, until time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for len(m.ends) > 0 && m.ends[0].until.Before(now) {
		if e, ok := heap.Pop(&m.ends).(expiry); ok {
			delete(m.used, e.id)
			m.counts(e.of, -1)
		}
	}
	if _, used := m.used[id]; used {
		return false, nil
	}
	if !m.fits(of) {
		return false, fault.New(fault.Overloaded, "too many tokens of this issuer were used in a short time to remember another; try again").
			With("dependency", "replay").After(max(m.ends[0].until.Sub(now), time.Second))
	}
	m.used[id] = struct{}{}
	m.counts(of, 1)
	heap.Push(&m.ends, expiry{id, until, of})
	return true, nil
}

// fits keeps an entry from having more than is left free, and an issuer of a
// pattern from having more than what then is left: so one that fills its share
// takes the half of the memory, and the next still gets the half of the other half.
func (m *memory) fits(of owner) bool {
	free := m.most - len(m.used)
	if of.issuer != of.entry {
		free -= m.count[of.issuer]
	}
	return m.count[of.entry] < free
}

func (m *memory) counts(of owner, change int) {
	names := []string{of.entry, of.issuer}
	if of.issuer == of.entry {
		names = names[:1]
	}
	for _, name := range names {
		if m.count[name] += change; m.count[name] == 0 {
			delete(m.count, name)
		}
	}
}

type expiry struct {
	id    [sha256.Size]byte
	until time.Time
	of    owner
}

// expiries is a heap.
type expiries []expiry

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].until.Before(e[j].until) }
func (e expiries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }

// Push takes an expiry, as [heap.Push] gives it.
func (e *expiries) Push(x any) {
	if one, ok := x.(expiry); ok {
		*e = append(*e, one)
	}
}

// Pop gives the last.
func (e *expiries) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}
