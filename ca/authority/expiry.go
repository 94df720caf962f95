package authority

import (
	"context"
	"log/slog"
	"time"
)

// expiryInterval is how often the trusted authorities are looked at: a CA's life is
// counted in months, or days.
const expiryInterval = time.Minute

// WatchExpiry warns of every trusted authority whose end comes near: at once, and
// each time that less of its life remains than before, until ctx ends. A retired
// one may expire; what it signed stays trusted.
func (f *InForce) WatchExpiry(ctx context.Context) error {
	logged := make(map[string]int) // by issuing certificate: the last percentage
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		logged = f.logExpiry(ctx, logged)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
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
