package notify

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/store"
)

// Statements are what was revoked, in order.
type Statements interface {
	// Size is how many there are.
	Size() uint64
	// Line is the statement with an index below the size, in JSON.
	Line(index uint64) ([]byte, error)
}

// once does something in one transaction with a statement that changes a row, unless
// another replica has done both.
func (a *Alerts) once(ctx context.Context, do func(tx store.Handle) error, statement string, args ...any) error {
	return a.store.Write(ctx, func(tx store.Handle) error {
		if err := lock(ctx, tx); err != nil {
			return err
		}
		if n, err := tx.Change(ctx, statement, args...); n == 0 || err != nil {
			return err
		}
		return do(tx)
	})
}

// lookForRevocations tells of statements that weren't looked at yet.
func (a *Alerts) lookForRevocations(ctx context.Context) error {
	var next uint64
	if err := a.store.QueryRow(ctx, "SELECT statements FROM alerts_state").Scan(&next); err != nil || a.Statements == nil {
		return err
	}
	for ; next < a.Statements.Size(); next++ {
		c, err := a.revoked(ctx, next)
		if err != nil {
			return fmt.Errorf("notify: statement %d: %w", next, err)
		}
		tell := func(tx store.Handle) error {
			if c.Logged.Before(a.began) {
				return nil
			}
			return a.tell(ctx, tx, Revocation, &c, map[string]string{"index": "", "statement": strconv.FormatUint(next, 10)})
		}
		if err := a.once(ctx, tell, "UPDATE alerts_state SET statements = ? WHERE statements = ?", next+1, next); err != nil {
			return err
		}
	}
	return nil
}

// revoked is what is known of the certificate that a statement (ca/revoke) is about.
// Logged is when the statement was made.
func (a *Alerts) revoked(ctx context.Context, number uint64) (c index.Certificate, err error) {
	line, err := a.Statements.Line(number)
	var s struct {
		Authority, Comment, Reason, Reference, Serial string
		Time                                          time.Time
	}
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		return c, err
	}
	page, err := a.Index.Search(ctx, index.Query{Limit: 1, Filters: []index.Filter{{Field: "serial", Value: s.Serial}, {Field: "authority", Value: s.Authority}}})
	c = index.Certificate{Fields: map[string]string{"authority": s.Authority, "serial": s.Serial}}
	if len(page.Certificates) > 0 {
		c = page.Certificates[0]
	}
	c.Logged = s.Time
	maps.Copy(c.Fields, map[string]string{"reason": s.Reason, "comment": s.Comment, "reference": s.Reference})
	return c, err
}

// lookForSilence tells of who had no certificate for too long, as far as the index
// knows: one that is late makes no silence.
func (a *Alerts) lookForSilence(ctx context.Context, r *rule) error {
	for known := a.Known(); ; {
		var identity, owner string
		var seen int64
		err := a.store.QueryRow(ctx, "SELECT identity, owner, seen FROM alerts_seen WHERE rule = ? AND told = 0 AND seen < ? ORDER BY seen LIMIT 1",
			r.Name, known.Add(-r.After).UnixMilli()).Scan(&identity, &owner, &seen)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		c := index.Certificate{Logged: known, Fields: map[string]string{"identity": identity, "san": owner, "san_type": "email"}}
		more := map[string]string{"index": "", "san_type": "", "last": time.UnixMilli(seen).UTC().Format(time.RFC3339), "after": r.After.String()}
		if err := a.once(ctx, func(tx store.Handle) error { return a.write(ctx, tx, r, &c, more) },
			"UPDATE alerts_seen SET told = 1 WHERE rule = ? AND identity = ? AND seen = ? AND told = 0", r.Name, identity, seen); err != nil {
			return err
		}
	}
}
