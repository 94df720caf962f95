package notify

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// language is what conditions are written in: the fields of search, and those of first
// uses and revocations.
var language = sync.OnceValues(func() (*policy.Fields, error) { return policy.NewFields(texts, []string{"not_before", "not_after"}) })

var texts = append(slices.Clone(index.Fields), "kind", "value", "reason")

// rule is one that can be asked.
type rule struct {
	Rule
	when    *policy.Condition // nil: all
	targets []*target
}

func compile(path string, all []Rule, f *setting.Faults) []rule {
	env, err := language()
	if err != nil {
		f.Add(path, "%v", err)
		return nil
	}
	made := make([]rule, len(all))
	for i, r := range all {
		if made[i].Rule = r; r.When == "" {
			continue
		}
		if made[i].when, err = env.Compile(r.When); err != nil {
			f.Add(setting.Join(setting.Index(path, i), "when"), "%v", err)
		}
	}
	return made
}

// Take looks at entries of a log, in the transaction that keeps them: both or neither.
// It takes none twice, and none from before there were alerts.
func (a *Alerts) Take(ctx context.Context, tx store.Handle, log string, entries iter.Seq[index.Kept]) error {
	if err := lock(ctx, tx); err != nil {
		return err
	}
	var taken uint64
	if err := tx.QueryRow(ctx, "SELECT COALESCE(MAX(entries), 0) FROM alerts_logs WHERE log = ?", log).Scan(&taken); err != nil {
		return fmt.Errorf("notify: how far the log was looked at: %w", err)
	}
	size := taken
	for e := range entries {
		size = max(size, e.Index+1)
		if e.Index < taken || e.Logged.Before(a.began) {
			continue
		}
		for _, on := range []On{Certificate, Silence} {
			if err := a.tell(ctx, tx, on, &e.Certificate, nil); err != nil {
				return err
			}
		}
		for _, use := range e.FirstUses {
			if err := a.tell(ctx, tx, FirstUse, &e.Certificate, map[string]string{"kind": use.Kind, "value": use.Value}); err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, "INSERT INTO alerts_logs VALUES (?, ?) ON CONFLICT (log) DO UPDATE SET entries = excluded.entries", log, size)
	return err
}

// tell does what the rules about something say of a certificate, and of more beside it.
func (a *Alerts) tell(ctx context.Context, tx store.Handle, on On, c *index.Certificate, more map[string]string) (err error) {
	facts := sync.OnceValue(func() map[string]any {
		all := map[string]any{"not_before": c.NotBefore, "not_after": c.NotAfter}
		for _, name := range texts {
			all[name] = cmp.Or(more[name], c.Fields[name])
		}
		return all
	})
	rules := a.current.Load().rules
	for i := range rules {
		r := &rules[i]
		switch {
		case err != nil || r.Event != on || r.when != nil && !r.when.Holds(facts()):
		case on == Silence:
			_, err = tx.Exec(ctx, `INSERT INTO alerts_seen VALUES (?, ?, ?, ?, 0) ON CONFLICT (rule, identity) DO UPDATE SET
				seen = excluded.seen, owner = excluded.owner, told = 0 WHERE alerts_seen.seen < excluded.seen`, r.Name, c.Fields["identity"], owner(c), c.Logged.UnixMilli())
		default:
			err = a.write(ctx, tx, r, c, more)
		}
	}
	return err
}

// write puts an alert into the outbox for each target of a rule. The fields of more go
// before its own; the empty ones are left out.
func (a *Alerts) write(ctx context.Context, tx store.Handle, r *rule, c *index.Certificate, more map[string]string) error {
	data := map[string]string{"rule": r.Name, "index": strconv.FormatUint(c.Index, 10)}
	for name, at := range map[string]time.Time{"not_before": c.NotBefore, "not_after": c.NotAfter} {
		if !at.IsZero() {
			data[name] = at.UTC().Format(time.RFC3339)
		}
	}
	maps.Copy(data, c.Fields)
	maps.Copy(data, more)
	text, err := encode(a.Source, r.Event, c.Logged, data)
	for _, t := range r.targets {
		recipient := ""
		if t.Owner {
			recipient = owner(c)
		}
		if err == nil && (!t.Owner || recipient != "") {
			err = a.add(ctx, tx, t, recipient, text)
		}
	}
	return err
}

// owner is the mail address of whom the certificate is for, or "".
func owner(c *index.Certificate) string {
	if c.Fields["san_type"] == "email" && isAddress(c.Fields["san"]) {
		return c.Fields["san"]
	}
	return ""
}

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

// event is a CloudEvent (version 1.0.2) in its JSON format.
type event struct {
	SpecVersion     string            `json:"specversion"`
	ID              string            `json:"id"`
	Source          string            `json:"source"`
	Type            string            `json:"type"`
	Subject         string            `json:"subject,omitempty"`
	Time            time.Time         `json:"time"`
	DataContentType string            `json:"datacontenttype"`
	Data            map[string]string `json:"data"`
}

// typePrefix begins the type of every event.
const typePrefix = "dev.mayfly.alert."

// encode makes an event of what has a value in data.
func encode(source string, on On, at time.Time, data map[string]string) (string, error) {
	maps.DeleteFunc(data, func(_, value string) bool { return value == "" })
	text, err := json.Marshal(event{"1.0", rand.Text(), source, typePrefix + string(on), data["serial"], at.UTC(), "application/json", data})
	return string(text), err
}

// words are the fields with these names that have a value, safe to show.
func (e *event) words(names []string, before, after string) string {
	var b strings.Builder
	for _, name := range names {
		if value := e.Data[name]; value != "" {
			fmt.Fprintf(&b, "%s%s: %s%s", before, name, terminal.Escape(value), after)
		}
	}
	return b.String()
}

// headline says in one line what happened.
func (e *event) headline() string {
	return strings.TrimPrefix(e.Type, typePrefix) + e.words([]string{"rule", "san", "identity", "kind", "value", "reason", "last", "issuer", "serial"}, "  ", "")
}

// describe is the event for a person: what happened, and all that is known of it.
func (e *event) describe() string {
	return e.Time.Format(time.RFC3339) + "  " + strings.TrimPrefix(e.Type, typePrefix) + "\n" + e.words(slices.Sorted(maps.Keys(e.Data)), "    ", "\n")
}
