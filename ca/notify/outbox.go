package notify

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// The bounds of what waits, and of one message.
const (
	maxQueued    = 50_000             // alerts for one target: what comes beyond is lost
	maxWait      = 7 * 24 * time.Hour // of one alert: then it is lost, and the next one's turn
	digestEvents = 100
	digestBytes  = 128 << 10
	lease        = 3 * time.Minute // of a queue
)

// lock has whoever adds wait for the one before: so numbers are in the order of commits,
// and no two wait for each other.
func lock(ctx context.Context, tx store.Handle) error {
	if _, err := tx.Exec(ctx, "UPDATE alerts_state SET last = last"); err != nil {
		return fmt.Errorf("notify: waiting to add alerts: %w", err)
	}
	return nil
}

// add puts an alert into the outbox.
func (a *Alerts) add(ctx context.Context, tx store.Handle, t *target, recipient, text string) error {
	full := false
	a.note(t.Name, func(s *status) {
		if full = s.queued >= maxQueued; full { // as of the last look
			a.alerts.WithLabelValues(t.Name, outcomeLost).Inc()
		}
	})
	if full {
		return nil
	}
	now := a.Now()
	var id int64
	err := tx.QueryRow(ctx, "UPDATE alerts_state SET last = last + 1 RETURNING last").Scan(&id)
	if err == nil {
		_, err = tx.Exec(ctx, "INSERT INTO alerts_outbox VALUES (?, ?, ?, ?, ?, 0, ?)", id, t.Name, recipient, now.UnixMilli(), now.Add(t.Digest).UnixMilli(), text)
	}
	if err != nil {
		return fmt.Errorf("notify: keeping an alert: %w", err)
	}
	return nil
}

// parcel is what is sent at once: the first of a queue, and of a digest those after it.
type parcel struct {
	recipient   string
	first, last int64
	attempts    int
	events      []event
}

// claim takes the queue of a target that has been due longest; nil where none is.
func (a *Alerts) claim(ctx context.Context, t *target) (*parcel, error) {
	now, p, due := a.Now(), &parcel{}, int64(0)
	err := a.store.QueryRow(ctx, `SELECT id, recipient, attempts, due FROM alerts_outbox
		WHERE id IN (SELECT MIN(id) FROM alerts_outbox WHERE target = ? GROUP BY recipient) AND due <= ? ORDER BY due, id LIMIT 1`,
		t.Name, now.UnixMilli()).Scan(&p.first, &p.recipient, &p.attempts, &due)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // nothing is due
	}
	if err != nil {
		return nil, err
	}
	claimed, err := a.change(ctx, "UPDATE alerts_outbox SET due = ? WHERE id = ? AND due = ?", now.Add(lease).UnixMilli(), p.first, due)
	if err != nil || claimed == 0 { // another process has it
		return nil, err
	}
	most := 1
	if t.Digest > 0 {
		most = digestEvents
	}
	rows, err := a.store.Query(ctx, "SELECT id, event FROM alerts_outbox WHERE target = ? AND recipient = ? AND id >= ? ORDER BY id LIMIT ?", t.Name, p.recipient, p.first, most)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for size := 0; size < digestBytes && rows.Next(); {
		var text []byte
		var e event
		if err := errors.Join(rows.Scan(&p.last, &text), json.Unmarshal(text, &e)); err != nil {
			return nil, err
		}
		p.events, size = append(p.events, e), size+len(text)
	}
	return p, rows.Err()
}

// change is one statement by itself, and how many rows it changed.
func (a *Alerts) change(ctx context.Context, statement string, args ...any) (n int64, err error) {
	err = a.store.Write(ctx, func(tx store.Handle) (err error) {
		n, err = tx.Change(ctx, statement, args...)
		return err
	})
	return n, err
}

// count looks at what waits, and gives up what has waited too long, as that of a target
// that no configuration has any more.
func (a *Alerts) count(ctx context.Context, c *Loaded) error {
	old := a.Now().Add(-maxWait).UnixMilli()
	lost, err := a.change(ctx, "DELETE FROM alerts_outbox WHERE created < ?", old)
	if err != nil {
		return err
	}
	if lost > 0 {
		a.expired.WithLabelValues().Add(float64(lost))
		a.Logger.LogAttrs(ctx, slog.LevelError, "alerts that waited for a week are lost", slog.Int64("alerts", lost))
	}
	for name := range c.targets {
		var queued int
		var oldest sql.NullInt64
		if err := a.store.QueryRow(ctx, "SELECT COUNT(*), MIN(created) FROM alerts_outbox WHERE target = ?", name).Scan(&queued, &oldest); err != nil {
			return err
		}
		a.note(name, func(s *status) {
			s.queued = queued
			a.queued.WithLabelValues(name).Set(float64(queued))
			a.oldest.WithLabelValues(name).Set(float64(oldest.Int64) / 1000)
		})
	}
	return nil
}

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
		if c.rules[i].Event == Silence {
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
