// Package index keeps every certificate that a log holds, decoded, in a store, and finds
// them again: by identity, by any extension, by key, by time, by what they signed. It is
// filled by ctlog/follow, may be late or down without anybody waiting for it, and can be
// made again from the log at any time, but for what bundles and revocations told.
package index

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/store"
)

//go:embed schema/*.sql
var schema embed.FS

// searches makes the indexes that only searches need, a line each. A store that is far behind
// a log is filled without them: to sort all rows takes a tenth of putting each in its place.
//
//go:embed schema/02-searches.sql
var searches string

var unsearched = regexp.MustCompile("(?m)^CREATE INDEX IF NOT EXISTS ([a-z_]+) .*").ReplaceAllString(searches, "DROP INDEX IF EXISTS $1;")

const (
	far  = 1 << 16          // entries, and four times what the store has
	slow = 10 * time.Minute // for as many: a store with indexes takes them as well
)

// knownSubjects is how many subjects' numbers are remembered: some 100 bytes each.
const knownSubjects = 64 << 10

// Index is one index. It is safe for concurrent use.
type Index struct {
	db      atomic.Pointer[store.DB] // nil until it could be opened
	known   *lru.Cache[[sha256.Size]byte, int64]
	taker   Taker                // nil: nobody is told
	filling atomic.Pointer[fill] // of a store without indexes; nil: it has them
	slow    atomic.Bool          // a fill was too slow: none begins again
	finish  func() error         // within Open's context: a look's minute may not do
}

// fill is how the filling of a store by one log goes.
type fill struct {
	log   string
	since time.Time
	kept  int // entries since then; the log's Keep alone counts
}

// Taker is told of what is kept, in order, within the transaction that keeps it. Its
// error has nothing kept.
type Taker interface {
	Take(ctx context.Context, tx store.Handle, log string, all iter.Seq[Kept]) error
}

// Kept is a certificate that is kept, with what its identity uses for the first time.
type Kept struct {
	Certificate
	FirstUses []Event
}

// SetTaker says who is told. It goes before Open.
func (i *Index) SetTaker(t Taker) { i.taker = t }

// New is an index that isn't open yet.
func New() *Index {
	known, _ := lru.New[[sha256.Size]byte, int64](knownSubjects) // it fails for a size below 1
	return &Index{known: known}
}

// Open opens the index in a store, whose tables it makes. The store stays the caller's.
func (i *Index) Open(ctx context.Context, db *store.DB) error {
	i.finish = func() error {
		i.filling.Store(&fill{since: time.Now()})        // after a failure Position tries again, as late as after a slow fill
		for statement := range strings.Lines(searches) { // others write in between
			if err := db.Write(ctx, func(tx store.Handle) error { _, err := tx.Exec(ctx, statement); return err }); err != nil {
				return fmt.Errorf("index: making the indexes that searches need: %w", err)
			}
		}
		i.filling.Store(nil)
		return nil
	}
	err := db.Migrate(ctx, "index", schema)
	if err == nil && db.Alone() {
		err = i.finish() // whoever filled it may have been killed
	}
	if err == nil {
		i.db.Store(db)
	}
	return err
}

// open is the store, or a *fault.Error while there is none.
func (i *Index) open() (*store.DB, error) {
	if db := i.db.Load(); db != nil {
		return db, nil
	}
	return nil, unavailable(nil)
}

// unavailable is the failure of a search whose store doesn't answer.
func unavailable(err error) error {
	return fault.New(fault.StoreUnavailable, "the index can't be read now; try again").Because(err)
}

// searchable is a *fault.Error while there are no indexes.
func (i *Index) searchable() error {
	if i.filling.Load() == nil {
		return nil
	}
	return fault.New(fault.StoreUnavailable, "the index is being filled from a long log, and lists only the newest certificates meanwhile; try again later")
}

// Position is where the following of a log goes on. A fill that is too slow ends here: any
// log's look comes by, whatever became of the one that fills.
func (i *Index) Position(ctx context.Context, log ctlog.Description) (p follow.Position, err error) {
	db, err := i.open()
	if err != nil {
		return p, err
	}
	if by := i.filling.Load(); by != nil && time.Since(by.since) > slow {
		i.slow.Store(true)
		if err := i.finish(); err != nil {
			return p, err
		}
	}
	var hashes []byte
	err = db.QueryRow(ctx, "SELECT size, hashes, checkpoint FROM followed WHERE log = ?", logID(log)).Scan(&p.Size, &hashes, &p.Checkpoint)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil
	}
	p.Hashes = slices.Collect(slices.Chunk(hashes, sha256.Size))
	return p, err
}

func logID(log ctlog.Description) string { return hex.EncodeToString(log.ID[:]) }

// Keep stores entries and the position after them in one transaction.
func (i *Index) Keep(ctx context.Context, log ctlog.Description, from uint64, entries []follow.Entry, after follow.Position) error {
	db, err := i.open()
	if err != nil {
		return err
	}
	row := append([]string{"subject", "log_index", "logged", "not_before", "not_after"}, columns[len(ofSubject):]...)
	k := keeping{log: logID(log), index: i, fresh: map[[sha256.Size]byte]int64{}, certificates: make([]any, 0, len(entries)*len(row))}
	rest, fills := after.Head-min(after.Head, after.Size), false
	err = db.Write(ctx, func(tx store.Handle) error {
		if err := k.move(ctx, tx, from, after); err != nil {
			return err
		}
		for _, e := range entries {
			if err := k.add(ctx, tx, e); err != nil {
				return err
			}
		}
		if rest >= far && db.Alone() && i.filling.Load() == nil && !i.slow.Load() {
			if err = tx.QueryRow(ctx, "SELECT COALESCE(MAX(id), 0) < ? FROM certificates", rest/4).Scan(&fills); fills {
				_, err = tx.Exec(ctx, unsearched)
			}
		}
		if err == nil {
			err = tx.Insert(ctx, "INSERT INTO certificates ("+strings.Join(row, ", ")+")", len(row), k.certificates)
		}
		if err == nil {
			err = tx.Insert(ctx, "INSERT INTO events (kind, identity, value, log, log_index, serial, happened)", 7, k.events)
		}
		if err != nil {
			return fmt.Errorf("index: keeping entries: %w", err)
		}
		if i.taker == nil {
			return nil
		}
		return i.taker.Take(ctx, tx, k.log, slices.Values(k.kept))
	})
	if err == nil { // what was rolled back has no number
		for digest, id := range k.fresh {
			i.known.Add(digest, id)
		}
		by := i.filling.Load()
		if fills {
			by = &fill{log: k.log, kept: far}
		}
		if by != nil && by.log == k.log {
			if by.kept += len(entries); rest == 0 {
				return i.finish()
			}
			if by.kept >= far {
				i.filling.Store(&fill{log: k.log, since: time.Now()})
			}
		}
	}
	return err
}

// keeping is what one transaction adds.
type keeping struct {
	log                  string
	index                *Index
	fresh                map[[sha256.Size]byte]int64 // subjects' numbers, of this transaction
	certificates, events []any
	kept                 []Kept // for the taker
}

// move moves the position, which has to be at from.
func (k *keeping) move(ctx context.Context, tx store.Handle, from uint64, after follow.Position) error {
	hashes := append([]byte{}, slices.Concat(after.Hashes...)...) // not NULL
	statement, args := "UPDATE followed SET size = ?, hashes = ?, checkpoint = ? WHERE log = ? AND size = ?", []any{after.Size, hashes, after.Checkpoint, k.log, from}
	if from == 0 {
		statement, args = "INSERT INTO followed (size, hashes, checkpoint, log) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", args[:4]
	}
	n, err := tx.Change(ctx, statement, args...)
	if err != nil {
		return fmt.Errorf("index: moving the position: %w", err)
	}
	if n != 1 {
		return follow.ErrMoved
	}
	return nil
}

// add takes one entry up.
func (k *keeping) add(ctx context.Context, tx store.Handle, e follow.Entry) error {
	c := decode(k.log, e)
	id, uses, err := k.subject(ctx, tx, c)
	if err != nil {
		return fmt.Errorf("index: keeping a subject: %w", err)
	}
	if k.index.taker != nil {
		c.Fields = map[string]string{}
		for i, name := range columns {
			if c.values[i] != "" {
				c.Fields[name] = c.values[i]
			}
		}
		k.kept = append(k.kept, Kept{*c, uses})
	}
	k.certificates = append(k.certificates, id, c.Index, c.Logged.Unix(), c.NotBefore.Unix(), c.NotAfter.Unix())
	for i, value := range c.values[len(ofSubject):] {
		column := any(value)
		if value == "" && i < len(ofRun) {
			column = nil
		}
		k.certificates = append(k.certificates, column)
	}
	if e.Precert {
		return nil
	}
	return tell(ctx, tx, "", chain.Fingerprint(e.Certificate), c.value("serial"), c.value("authority"), c.Logged)
}

// subject is the number of the certificate's subject. One that is new is compared with
// what its identity used before.
func (k *keeping) subject(ctx context.Context, tx store.Handle, c *Certificate) (id int64, uses []Event, err error) {
	digest := sha256.Sum256([]byte(strings.Join(c.values[:len(ofSubject)], "\x00")))
	id, ok := k.fresh[digest]
	if !ok {
		id, ok = k.index.known.Get(digest)
	}
	if ok {
		return id, nil, nil
	}
	err = tx.QueryRow(ctx, "SELECT id FROM subjects WHERE digest = ?", digest[:]).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		if uses, err = k.compare(ctx, tx, c); err != nil {
			return 0, nil, err
		}
		values := []any{digest[:]}
		for _, text := range c.values[:len(ofSubject)] {
			values = append(values, text)
		}
		// Another process may have followed another log to the same one meanwhile.
		err = tx.QueryRow(ctx, "INSERT INTO subjects (digest, "+strings.Join(ofSubject, ", ")+") VALUES (?"+strings.Repeat(", ?", len(ofSubject))+
			") ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest RETURNING id", values...).Scan(&id)
	}
	k.fresh[digest] = id
	return id, uses, err
}

// The kinds of events, each with the column that has what is new.
var firstUses = []struct{ kind, column string }{
	{"new_workflow", "workflow"}, {"new_runner", "runner_environment"}, {"new_issuer", "issuer"},
}

// compare makes an event of each thing that an identity, known before, uses first.
func (k *keeping) compare(ctx context.Context, tx store.Handle, c *Certificate) (uses []Event, err error) {
	identity := c.value("identity")
	for _, first := range firstUses {
		value := c.value(first.column)
		var known, used bool
		err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM subjects WHERE identity = ?), EXISTS (SELECT 1 FROM subjects WHERE identity = ? AND "+first.column+" = ?)", identity, identity, value).Scan(&known, &used)
		if err != nil || !known {
			return nil, err
		}
		if identity != "" && value != "" && !used {
			k.events = append(k.events, first.kind, identity, value, k.log, c.Index, c.value("serial"), c.Logged.Unix())
			uses = append(uses, Event{Kind: first.kind, Identity: identity, Value: value})
		}
	}
	return uses, nil
}

// Event is the first use of something by an identity that was known.
type Event struct {
	ID       int64     `json:"-"`
	Kind     string    `json:"kind"` // new_workflow, new_runner, new_issuer
	Identity string    `json:"identity"`
	Value    string    `json:"value"`
	Log      string    `json:"log"`
	Index    uint64    `json:"index"`
	Serial   string    `json:"serial"`
	Happened time.Time `json:"happened"`
}

// Events lists what happened after the event with a number, the oldest first; of one
// identity, or of all for "".
func (i *Index) Events(ctx context.Context, after int64, identity string, limit int) (all []Event, err error) {
	db, err := i.open()
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, "SELECT id, kind, identity, value, log, log_index, serial, happened FROM events WHERE id > ? AND (? = '' OR identity = ?) ORDER BY id LIMIT ?", after, identity, identity, limit)
	return collect(rows, err, func(e *Event) ([]any, func()) {
		var happened int64
		return []any{&e.ID, &e.Kind, &e.Identity, &e.Value, &e.Log, &e.Index, &e.Serial, &happened}, func() { e.Happened = time.Unix(happened, 0).UTC() }
	})
}

// collect reads rows; of gives where the columns of one go, and what is done after.
func collect[T any](rows *sql.Rows, err error, of func(*T) ([]any, func())) ([]T, error) {
	if err != nil {
		return nil, unavailable(err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var one T
		places, done := of(&one)
		if err := rows.Scan(places...); err != nil {
			return nil, unavailable(err)
		}
		done()
		all = append(all, one)
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(err)
	}
	return all, nil
}

// Revocation is what is revoked, and when.
type Revocation struct {
	Serial, Authority, Reason string
	At                        time.Time
}

// SetRevoked notes revocations, also of what isn't here yet. The same one again changes nothing.
func (i *Index) SetRevoked(ctx context.Context, all []Revocation) error {
	db, err := i.open()
	if err != nil {
		return err
	}
	return db.Write(ctx, func(tx store.Handle) error {
		for _, r := range all {
			if _, err := tx.Exec(ctx, "INSERT INTO revoked (serial, authority, reason, revoked_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", r.Serial, r.Authority, r.Reason, r.At.Unix()); err != nil {
				return fmt.Errorf("index: noting a revocation: %w", err)
			}
		}
		return nil
	})
}
