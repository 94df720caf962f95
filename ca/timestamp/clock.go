package timestamp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/beevik/ntp"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

const (
	// clockInterval is how often the clock is looked at, and time sources asked: what
	// public servers of time bear.
	clockInterval = 64 * time.Second
	// settled is how long after it was set the clock is believed again where no time
	// source says that it is right: whoever sets a clock at a start does it within minutes.
	settled = 5 * time.Minute
	// comparedFor is how long a comparison with time sources counts.
	comparedFor = 15 * clockInterval
	// sourceTimeout bounds one question to a time source.
	sourceTimeout = 2 * time.Second
)

// clock is the machine's, and what is known against it. It is compared with a second
// one that nobody can set, which runs from the start of the process: where the two
// part, the machine's was set, and which of its times were right nobody here knows.
// Time sources, where there are any, do. It never gives a time before one that it gave.
type clock struct {
	now     func() time.Time     // the machine's
	running func() time.Duration // since the start of the process
	sources []string

	mu       sync.Mutex
	base     time.Time     // the machine's when the two were last known to agree
	begun    time.Duration // and the other's
	setAt    time.Duration // when the machine's was seen to be set; negative: never
	offset   time.Duration // of the machine's from the time sources'
	compared time.Duration // when; negative: never
	given    time.Time     // the last time that was given
}

func newClock(now func() time.Time, running func() time.Duration, sources []string) *clock {
	return &clock{now: now, running: running, sources: sources, base: now().Round(0), begun: running(), setAt: -1, compared: -1}
}

// look reads both clocks, and says what is known against the machine's when it may be
// off by bound. mu is held.
func (c *clock) look(bound time.Duration) (now time.Time, err error) {
	now = c.now().Round(0) // without Go's own reading of the other clock
	running := c.running()
	if set := now.Sub(c.base) - (running - c.begun); set.Abs() > bound {
		c.base, c.begun, c.setAt = now, running, running
	}
	fresh := c.compared >= 0 && c.compared >= c.setAt && running-c.compared <= comparedFor
	switch {
	case fresh && c.offset.Abs() > bound:
		return now, fmt.Errorf("the clock is off by %v: correct it", c.offset.Round(time.Millisecond))
	case !fresh && c.setAt >= 0 && running-c.setAt < settled:
		return now, fmt.Errorf("the clock was set while the service ran: it is believed again in %v, or once a time source confirms it", (settled - (running - c.setAt)).Round(time.Second))
	case c.given.Sub(now) > bound+ownSecond:
		return now, fmt.Errorf("the clock is behind the last timestamp, %s: correct it, or restart the service if that one was wrong", c.given.Format(time.RFC3339))
	}
	return now, nil
}

// trusted is nil while nothing is known against the clock.
func (c *clock) trusted(bound time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.look(bound)
	return err
}

// time is the time for a timestamp, in whole seconds.
func (c *clock) time(bound time.Duration) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.look(bound)
	if err != nil {
		return time.Time{}, err
	}
	if at := now.UTC().Truncate(time.Second); at.After(c.given) {
		c.given = at
	}
	return c.given, nil
}

// watch looks at the clock, and compares it with the time sources, until ctx ends. It
// tells what came of each look.
func (c *clock) watch(ctx context.Context, bound func() time.Duration, tell func(error)) {
	for {
		err := c.compare(ctx)
		tell(errors.Join(c.trusted(bound()), err))
		if wait.For(ctx, clockInterval) != nil {
			return
		}
	}
}

// compare asks all time sources. The median of the answers counts: most of them would
// have to lie.
func (c *clock) compare(ctx context.Context) error {
	var offsets []time.Duration
	var errs []error
	for _, source := range c.sources {
		if ctx.Err() != nil {
			return nil
		}
		answer, err := ntp.QueryWithOptions(source, ntp.QueryOptions{Timeout: sourceTimeout, GetSystemTime: c.now})
		if err == nil {
			err = answer.Validate()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("time source %s: %w", source, err))
			continue
		}
		offsets = append(offsets, -answer.ClockOffset)
	}
	if len(offsets) == 0 {
		return errors.Join(errs...)
	}
	slices.Sort(offsets)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.compared = offsets[len(offsets)/2], c.running()
	return nil
}
