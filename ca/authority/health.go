package authority

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/wait"
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

// expiryInterval is how often the trusted authorities are looked at: a CA's life is
// counted in months, or days.
const expiryInterval = time.Minute

// WatchExpiry warns of every trusted authority whose end comes near: at once, and
// each time that less of its life remains than before, until ctx ends. A retired
// one may expire; what it signed stays trusted.
func (f *InForce) WatchExpiry(ctx context.Context) error {
	logged := make(map[string]int) // by issuing certificate: the last percentage
	for next := time.Duration(0); wait.For(ctx, next) == nil; next = expiryInterval {
		logged = f.logExpiry(ctx, logged)
	}
	return nil
}

// logExpiry warns of what is worth it since the percentages of before, and gives
// those of now.
func (f *InForce) logExpiry(ctx context.Context, before map[string]int) map[string]int {
	now, remaining := f.o.Trail.Now(), make(map[string]int)
	for _, t := range f.current.Load().Trusted {
		id, percent := string(t.Chain[0]), t.remains(now)
		remaining[id] = percent
		last, known := before[id]
		if ended := t.Renewed || !t.End.IsZero() && t.End.Before(now) && t.End.Before(t.NotAfter); ended || percent == 100 || known && percent >= last {
			continue
		}
		level := slog.LevelWarn
		if percent <= 10 {
			level = slog.LevelError
		}
		f.o.Trail.Logger.LogAttrs(ctx, level, "an authority's certificate ends soon, or has ended", slog.String("authority", t.Name),
			slog.Int("percent_of_life_remaining", percent), slog.Time("not_after", t.NotAfter), slog.String("advice", "prepare and publish its successor: docs/authorities.md"))
	}
	return remaining
}
