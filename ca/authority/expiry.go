package ca

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// expiryInterval is how often the listed authorities are looked at: a CA's life is
// counted in months, or days.
const expiryInterval = time.Minute

// expiries are the parts of an authority's life, in percent, that are worth a
// warning when no more remains.
var expiries = []int{30, 10, 0}

// remains is the smallest of expiries that has come; 100 when none has.
func (l Listed) remains(now time.Time) int {
	whole, left := l.NotAfter.Sub(l.NotBefore), l.NotAfter.Sub(now)
	reached := 100
	for _, percent := range expiries {
		if left <= whole/100*time.Duration(percent) {
			reached = percent
		}
	}
	return reached
}

// Expiry says that an authority is near its end, or past it; empty when it isn't.
func (l Listed) Expiry(now time.Time) string {
	switch percent := l.remains(now); percent {
	case 100:
		return ""
	case 0:
		return "expired"
	default:
		return fmt.Sprintf("less than %d %% of its life remains", percent)
	}
}

// WatchExpiry warns of every listed authority whose end comes near: at once, and
// each time that less of its life remains than before, until ctx ends. A retired
// one may expire; what it signed stays trusted.
func (i *Issuer) WatchExpiry(ctx context.Context) error {
	told := make(map[string]int) // by issuing certificate: the last percentage
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		i.tellExpiry(ctx, told)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (i *Issuer) tellExpiry(ctx context.Context, told map[string]int) {
	now, all := i.now(), i.current.Load()
	listed := make(map[string]int, len(all.Listed))
	for _, l := range all.Listed {
		id, percent := string(l.Chain[0]), l.remains(now)
		listed[id] = percent
		before, known := told[id]
		if ended := l.Renewed || !l.End.IsZero() && l.End.Before(now) && l.End.Before(l.NotAfter); ended || percent == 100 || known && percent >= before {
			continue
		}
		level, advice := slog.LevelWarn, "prepare and publish its successor: docs/authorities.md"
		if percent <= 10 {
			level = slog.LevelError
		}
		i.logger.LogAttrs(ctx, level, "an authority's certificate ends soon, or has ended", slog.String("authority", l.Name),
			slog.Int("percent_of_life_remaining", percent), slog.Time("not_after", l.NotAfter), slog.String("advice", advice))
	}
	clear(told)
	for id, percent := range listed {
		told[id] = percent
	}
}
