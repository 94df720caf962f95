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

// once refuses a good token that was used before.
func once(ctx context.Context, r Replay, issuer string, t *oidc.Token, leeway time.Duration) error {
	exp, _, err := numericDate(t.Claims, "exp")
	if err != nil {
		return err
	}
	first, err := r.Use(ctx, tokenID(issuer, t), exp.Add(leeway))
	switch {
	case err != nil:
		return err
	case !first:
		return fault.New(fault.TokenReplayed, "the identity token was used before, and this issuer's tokens are accepted once; get a new token")
	}
	return nil
}

// maxRemembered bounds a memory, in tokens: some 10 MiB.
const maxRemembered = 100_000

// memory is a Replay inside the process, which replicas and restarts don't share. When it is full of tokens that may
// still be used again, it refuses new ones: it never forgets early.
type memory struct {
	now  func() time.Time
	most int

	mu   sync.Mutex
	used map[[sha256.Size]byte]struct{}
	ends expiries // the same tokens, the first to end on top
}

func newMemory(now func() time.Time, most int) *memory {
	return &memory{now: now, most: most, used: make(map[[sha256.Size]byte]struct{})}
}

func (m *memory) Use(_ context.Context, id [sha256.Size]byte, until time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for len(m.ends) > 0 && m.ends[0].until.Before(now) {
		if e, ok := heap.Pop(&m.ends).(expiry); ok {
			delete(m.used, e.id)
		}
	}
	if _, used := m.used[id]; used {
		return false, nil
	}
	if len(m.used) >= m.most {
		return false, fault.New(fault.Overloaded, "too many tokens were used in a short time to remember another; try again").
			With("dependency", "replay").After(max(m.ends[0].until.Sub(now), time.Second))
	}
	m.used[id] = struct{}{}
	heap.Push(&m.ends, expiry{id, until})
	return true, nil
}

type expiry struct {
	id    [sha256.Size]byte
	until time.Time
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
