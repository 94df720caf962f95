// Package store keeps what has to be found again, such as the index of issued
// certificates: in SQLite, a file beside the service, or in PostgreSQL, which replicas
// share. Whoever keeps something has tables of its own ([DB.Migrate]) and writes SQL
// that both understand, with `?` for each argument.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `store` section. Without one there is no store.
type Config struct {
	// Path is the file of a SQLite database, which is made where there is none. It
	// holds identities; its owner alone may read it.
	Path setting.Path `yaml:"path,omitempty"`
	// URL is a PostgreSQL database in place of the file, as replicas need:
	// `postgres://mayfly@db.example.com/mayfly`. TLS with a verified name is used
	// beyond this machine, unless the URL says otherwise with `?sslmode=`.
	URL string `yaml:"url,omitempty"`
	// Password is the PostgreSQL user's.
	Password setting.Secret `yaml:"password,omitempty"`
}

// Parse reads the one argument that a command has for a store: a file, or a URL.
func Parse(text string) Config {
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		return Config{URL: text}
	}
	return Config{Path: setting.Path(text)}
}

// Enabled reports whether a store is configured.
func (c *Config) Enabled() bool { return c.Path != "" || c.URL != "" }

// Check adds every fault of c.
func (c *Config) Check(path string, f *setting.Faults) {
	c.Password.Check(setting.Join(path, "password"), f)
	f.When(c.Path != "" && c.URL != "", path, "names both path (SQLite) and url (PostgreSQL); keep one")
	if c.URL == "" {
		f.When(!c.Password.IsZero(), setting.Join(path, "password"), "only goes with url")
		return
	}
	if _, err := c.postgres(); err != nil {
		f.Add(setting.Join(path, "url"), "%v", err)
	}
}

// postgres is the URL, with TLS where it says nothing of it and leads beyond this machine.
func (c *Config) postgres() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("isn't postgres://user@host/database") // url.Parse's own words quote it
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("has a password in it; name it with password, by env or file")
	}
	q := u.Query()
	local := u.Hostname() == "" || loopback.Host(u.Hostname())
	if !q.Has("sslmode") && !local {
		q.Set("sslmode", "verify-full")
		u.RawQuery = q.Encode()
	}
	return u, nil
}

// What SQLite may hold in memory: pages of the one connection that writes, which sorts as
// much at once, and of each that reads.
const (
	readers     = 4 // also half of the connections to PostgreSQL
	writerCache = 8 << 20
	readerCache = 2 << 20
)

// MaxBytes bounds what an open store holds in memory.
const MaxBytes = 2*writerCache + readers*readerCache

// Handle is what statements are run with: the store, or one transaction.
type Handle struct {
	on       querier
	postgres bool
}

type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// DB is an open store. What is run on it reads; [DB.Write] writes. It is safe for
// concurrent use.
type DB struct {
	Handle
	reads, writes *sql.DB // one and the same for PostgreSQL
}

// prepared is a transaction of SQLite's that prepares each statement once, which takes
// as long as running it; pgx does that by itself.
type prepared struct {
	*sql.Tx
	statements map[string]*sql.Stmt // which end with it
}

func (p prepared) statement(ctx context.Context, query string) (s *sql.Stmt, err error) {
	if s = p.statements[query]; s == nil {
		if s, err = p.PrepareContext(ctx, query); err == nil {
			p.statements[query] = s
		}
	}
	return s, err
}

// ExecContext runs a statement; without arguments it may be several.
func (p prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if len(args) == 0 {
		return p.Tx.ExecContext(ctx, query)
	}
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(context.WithoutCancel(ctx), args...) // whose end rolls the transaction back; for each statement the driver would start a goroutine
}

// QueryRowContext runs a statement that returns one row.
func (p prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if s, err := p.statement(ctx, query); err == nil {
		return s.QueryRowContext(context.WithoutCancel(ctx), args...)
	}
	return p.Tx.QueryRowContext(ctx, query, args...) // which says the error
}

// Open connects, and makes the file of a new SQLite database, which its owner alone may
// read. The error doesn't hold the password.
func Open(ctx context.Context, c Config) (*DB, error) {
	open := openSQLite
	if c.URL != "" {
		open = openPostgres
	}
	d, err := open(c)
	if err != nil {
		return nil, err
	}
	if err := d.Ready(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// openSQLite has one connection write, so that none waits for another's lock, and
// several read what is committed meanwhile (https://sqlite.org/wal.html).
func openSQLite(c Config) (*DB, error) {
	f, err := os.OpenFile(string(c.Path), os.O_CREATE|os.O_RDWR, 0o600) // the files beside it get its mode
	if err == nil {
		err = errors.Join(durable.OwnerOfFolder(f), f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("store: opening the database: %w", err)
	}
	pool := func(connections, cache int, temporary ...string) *sql.DB {
		file := url.URL{Scheme: "file", OmitHost: true, Path: string(c.Path), RawQuery: url.Values{
			"_txlock": {"immediate"}, "_pragma": append(temporary, "busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)", fmt.Sprintf("cache_size(-%d)", cache>>10)),
		}.Encode()}
		p, _ := sql.Open("sqlite", file.String()) // it fails for an unknown driver
		p.SetMaxOpenConns(connections)
		p.SetMaxIdleConns(connections)
		return p
	}
	// The write-ahead log goes into the database every 8,000 pages, 32 MB: what is written often is copied less often. What is sorted for an index, more than the cache, goes into a file without a name beside the database; of several, the one that this process opened last.
	d := &DB{reads: pool(readers, readerCache, "temp_store(memory)"), writes: pool(1, writerCache, "wal_autocheckpoint(8000)", "temp_store(file)", "temp_store_directory('"+strings.ReplaceAll(filepath.Dir(string(c.Path)), "'", "''")+"')")}
	d.on = d.reads
	return d, nil
}

func openPostgres(c Config) (*DB, error) {
	u, err := c.postgres()
	if err != nil {
		return nil, err
	}
	settings, err := pgx.ParseConfig(u.String()) // its error has no password
	if err != nil {
		return nil, fmt.Errorf("store: the database's URL: %w", err)
	}
	if !c.Password.IsZero() {
		password, err := c.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("store: the database's password: %w", err)
		}
		settings.Password = string(password)
	}
	p := stdlib.OpenDB(*settings)
	p.SetMaxOpenConns(2 * readers)
	p.SetMaxIdleConns(readers)
	return &DB{Handle: Handle{on: p, postgres: true}, reads: p, writes: p}, nil
}

// Alone reports whether no replica has the same store.
func (d *DB) Alone() bool { return !d.postgres }

// Ready is nil while the database answers.
func (d *DB) Ready(ctx context.Context) error {
	if err := d.writes.PingContext(ctx); err != nil {
		return fmt.Errorf("store: the database doesn't answer: %w", err)
	}
	return nil
}

// Close closes the store.
func (d *DB) Close() error {
	if d.reads == d.writes {
		return d.writes.Close()
	}
	return errors.Join(d.reads.Close(), d.writes.Close())
}

// Write runs do in one transaction: all that it did is kept, or after an error nothing.
func (d *DB) Write(ctx context.Context, do func(Handle) error) error {
	tx, err := d.writes.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("store: beginning to write: %w", err)
	}
	h := Handle{on: tx, postgres: true}
	if !d.postgres {
		h = Handle{on: prepared{tx, map[string]*sql.Stmt{}}}
	}
	if err := do(h); err != nil {
		_ = tx.Rollback()             // where that fails the connection is given up, and the transaction with it
		return cmp.Or(ctx.Err(), err) // of a context that ended, a driver says that the statement is closed
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("store: writing: %w", err)
	}
	return nil
}

// Migrate brings the tables of one component up to date: files hold one step each,
// `schema/01-name.sql` and on, of which none changes once it was released. They are written
// for SQLite, where INTEGER has 64 bits; PostgreSQL's names of types take their place.
func (d *DB) Migrate(ctx context.Context, component string, files fs.FS) error {
	names, err := fs.Glob(files, "schema/*.sql") // in order
	if err != nil {
		return err
	}
	return d.Write(ctx, func(tx Handle) error {
		if d.postgres { // replicas start together
			if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(?)", schemaLock); err != nil {
				return fmt.Errorf("store: waiting for the schema: %w", err)
			}
		}
		if _, err := tx.Exec(ctx, "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"); err != nil {
			return fmt.Errorf("store: the schema's versions: %w", err)
		}
		version := 0
		if err := tx.QueryRow(ctx, "SELECT version FROM schema_versions WHERE component = ?", component).Scan(&version); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("store: the schema's version: %w", err)
		}
		if version > len(names) {
			return fmt.Errorf("store: the tables of %s have version %d, and this program knows %d: a newer Mayfly made them; use that one, or another database", component, version, len(names))
		}
		for _, name := range names[version:] {
			step, err := fs.ReadFile(files, name)
			if err != nil {
				return err
			}
			text := string(step)
			if d.postgres {
				text = types.Replace(text)
			}
			if _, err := tx.Exec(ctx, text); err != nil {
				return fmt.Errorf("store: bringing the tables of %s up to date, %s: %w", component, name, err)
			}
		}
		_, err := tx.Exec(ctx, "INSERT INTO schema_versions VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version", component, len(names))
		return err
	})
}

// types are PostgreSQL's names of what SQLite means: a key that is an integer numbers
// the rows, and text is ordered by its bytes.
var types = strings.NewReplacer("INTEGER PRIMARY KEY", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
	"INTEGER", "BIGINT", "BLOB", "BYTEA", "TEXT", `TEXT COLLATE "C"`)

// schemaLock is held by whoever changes tables in PostgreSQL: "mayfly" as a number.
const schemaLock = 0x6d6179666c79

// Exec runs a statement.
func (h Handle) Exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return h.on.ExecContext(ctx, h.bind(query), args...)
}

// Change runs a statement and counts the rows that it changed.
func (h Handle) Change(ctx context.Context, query string, args ...any) (int64, error) {
	done, err := h.Exec(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return done.RowsAffected()
}

// Query runs a statement that returns rows.
func (h Handle) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return h.on.QueryContext(ctx, h.bind(query), args...)
}

// QueryRow runs a statement that returns one row.
func (h Handle) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return h.on.QueryRowContext(ctx, h.bind(query), args...)
}

// insertRows is how many rows go into a table with one statement.
const insertRows = 64

// Insert puts rows of so many columns, one after the other in values, into a table:
// into is the statement up to VALUES.
func (h Handle) Insert(ctx context.Context, into string, columns int, values []any) error {
	row := ", (?" + strings.Repeat(", ?", columns-1) + ")"
	if !h.postgres { // so that SQLite doesn't prepare to undo one statement: its error has all undone
		into = strings.Replace(into, "INSERT", "INSERT OR FAIL", 1)
	}
	for rows := range slices.Chunk(values, insertRows*columns) {
		if _, err := h.Exec(ctx, into+" VALUES "+strings.Repeat(row, len(rows)/columns)[2:], rows...); err != nil {
			return err
		}
	}
	return nil
}

// bind writes the places of arguments as the database has them. No statement has a
// question mark that isn't one.
func (h Handle) bind(query string) string {
	if !h.postgres {
		return query
	}
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(n))
		query = after
	}
}
