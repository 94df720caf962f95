package ctlogtest

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// Honest is a log without storage: it signs an SCT for whatever it is shown.
type Honest struct {
	Signer *Signer
	About  ctlog.Description
	Now    func() time.Time // nil: time.Now
	next   atomic.Uint64
}

// Submit signs.
func (h *Honest) Submit(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	if err := ctx.Err(); err != nil {
		return ctlog.SCT{}, err
	}
	extensions, err := ctlog.LeafIndexExtension(h.next.Add(1) - 1)
	if err != nil {
		return ctlog.SCT{}, err
	}
	now := time.Now
	if h.Now != nil {
		now = h.Now
	}
	sct, err := h.Signer.sign(chain, now(), extensions)
	sct.LogID = h.About.ID
	return sct, err
}

// Description is what was set.
func (h *Honest) Description() ctlog.Description { return h.About }

// Ready is always nil.
func (h *Honest) Ready(context.Context) error { return nil }
