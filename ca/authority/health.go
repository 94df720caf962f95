package authority

import (
	"context"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// How long what a key says of its health is good for: long enough that many
// probes cost a KMS nothing, short enough that a key which comes back is seen.
const (
	healthyFor   = 5 * time.Second
	unhealthyFor = time.Second
)

// health remembers what a key said that can be asked without a signature.
type health struct {
	mu      sync.Mutex
	of      *Authority
	checked time.Time // when it was asked
	err     error     // what it said; nil: it could sign
}

// check is nil when a's key could sign. Callers at the same time share one question.
func (h *health) check(ctx context.Context, a *Authority, now func() time.Time) error {
	key, ok := a.signer.(kms.Healthy)
	if !ok {
		return kms.Try(ctx, a.signer)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	good := healthyFor
	if h.err != nil {
		good = unhealthyFor
	}
	if h.of == a && now().Sub(h.checked) < good {
		return h.err
	}
	err := key.Health(ctx)
	if ctx.Err() != nil {
		return err // that the caller gave up says nothing about the key
	}
	h.of, h.checked, h.err = a, now(), err
	return err
}
