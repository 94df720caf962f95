package notify

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// When what waits is looked at, sent, and tried again.
const (
	interval    = time.Second
	lookTimeout = 30 * time.Second
	sendTimeout = 30 * time.Second // one message, or each of the five steps of a mail: less than the lease together
	keepTimeout = 5 * time.Second  // that a message was sent, also when the service ends
	firstRetry  = 5 * time.Second  // doubled from attempt to attempt
	lastRetry   = 30 * time.Minute
)

// sender is a way to a target.
type sender interface {
	// send delivers events as one message, to recipient where the target is owners. After
	// an error they are sent again. The error holds no secret.
	send(ctx context.Context, recipient string, events []event, at time.Time) error
}

// target is one that can be sent to.
type target struct {
	Target
	sender sender
}

// Run sends what waits until ctx ends, to every target at once. It returns nil.
func (a *Alerts) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	defer sending.Wait()
	var busy sync.Map // the names of targets that are being sent to
	for {
		c := a.current.Load()
		if len(c.targets) > 0 {
			a.look(ctx, c)
		}
		for name, t := range c.targets {
			if _, already := busy.LoadOrStore(name, true); !already {
				sending.Go(func() {
					defer busy.Delete(name)
					for more := true; more && ctx.Err() == nil && a.current.Load() == c; { // a reload may send it elsewhere
						more = a.deliver(ctx, t)
					}
				})
			}
		}
		if wait.For(ctx, interval) != nil {
			return nil // the service ends
		}
	}
}

// look counts what waits, and looks for what comes of no entry of a log.
func (a *Alerts) look(ctx context.Context, c *Loaded) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	err := errors.Join(a.count(ctx, c), a.lookForRevocations(ctx))
	for i := range c.rules {
		if c.rules[i].On == Silence {
			err = errors.Join(err, a.lookForSilence(ctx, &c.rules[i]))
		}
	}
	a.ended(ctx, "", err)
}

// deliver sends the next parcel of a target, and reports whether another may be due.
// After an error its queue waits; when the service ends the queue is free after the lease.
func (a *Alerts) deliver(ctx context.Context, t *target) bool {
	p, err := a.claim(ctx, t)
	if p == nil && err == nil {
		return false
	}
	if err == nil {
		sending, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		err = t.sender.send(sending, p.recipient, p.events, a.Now())
		keeping, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
		defer cancel()
		var failed error
		if err == nil {
			_, err = a.change(keeping, "DELETE FROM alerts_outbox WHERE target = ? AND recipient = ? AND id <= ?", t.Name, p.recipient, p.last)
		} else if ctx.Err() == nil {
			_, failed = a.change(keeping, "UPDATE alerts_outbox SET attempts = attempts + 1, due = ? WHERE id = ?", a.Now().Add(a.backoff(p.attempts)).UnixMilli(), p.first)
		}
		err = errors.Join(err, failed)
	}
	if ctx.Err() == nil {
		a.ended(ctx, t.Name, err)
	}
	return err == nil
}

// backoff is how long to wait after so many attempts before: twice as long each time,
// and a fifth more or less, so that those who wait don't come together.
func (a *Alerts) backoff(attempts int) time.Duration {
	d := min(firstRetry<<min(attempts, 16), lastRetry)
	return time.Duration(float64(d) * (0.8 + 0.4*a.jitter()))
}

// ended keeps how an attempt with a target ended, or a look for "", and logs where that is news.
func (a *Alerts) ended(ctx context.Context, name string, err error) {
	outcome := outcomeSent
	if err != nil {
		outcome = outcomeFailed
	}
	a.note(name, func(s *status) {
		if name != "" {
			a.alerts.WithLabelValues(name, outcome).Inc()
		}
		if err != nil && s.err == nil {
			a.Logger.LogAttrs(ctx, slog.LevelWarn, "alerts wait, in order", slog.String("target", name), slog.Any("error", err))
		} else if err == nil && s.err != nil {
			a.Logger.LogAttrs(ctx, slog.LevelInfo, "alerts are sent again", slog.String("target", name))
		}
		s.err = err
	})
}
