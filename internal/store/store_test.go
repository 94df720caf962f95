package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/store/storetest"
)

var (
	first = &fstest.MapFile{Data: []byte("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT NOT NULL, raw BLOB);\nCREATE INDEX things_name ON things (name);\n")}
	next  = &fstest.MapFile{Data: []byte("ALTER TABLE things ADD COLUMN more TEXT;\n")}
)

// TestEach holds both kinds to the same: tables are made and changed once, also by
// replicas that start together; a transaction is whole or nothing; bytes come back.
func TestEach(t *testing.T) {
	t.Parallel()
	storetest.Each(t, map[string]func(*testing.T, store.Config){"tables": testTables})
}

func testTables(t *testing.T, c store.Config) {
	ctx := t.Context()
	d, replica := storetest.Open(t, c), storetest.Open(t, c)
	var starting sync.WaitGroup
	for _, one := range []*store.DB{d, replica} {
		starting.Go(func() {
			if err := one.Migrate(ctx, "things", fstest.MapFS{"schema/01-first.sql": first}); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	const big = 1 << 40
	var rows []any
	for i := range 100 {
		rows = append(rows, big+i, "naïve", []byte{0, 255})
	}
	if err := d.Write(ctx, func(tx store.Handle) error {
		return tx.Insert(ctx, "INSERT INTO things (id, name, raw)", 3, rows)
	}); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	if err := d.Write(ctx, func(tx store.Handle) error {
		if _, err := tx.Exec(ctx, "DELETE FROM things"); err != nil {
			return err
		}
		return no
	}); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
	stopped, stop := context.WithCancel(ctx)
	if err := d.Write(stopped, func(tx store.Handle) error {
		_, err := tx.Exec(ctx, "DELETE FROM things")
		stop()
		return err
	}); err == nil {
		t.Error("a transaction outlived its context")
	}
	var count int
	var id int64
	var raw []byte
	if err := replica.QueryRow(ctx, "SELECT COUNT(*), MAX(id) FROM things WHERE name = ?", "naïve").Scan(&count, &id); err != nil || count != 100 || id != big+99 {
		t.Errorf("%d rows, the last %d, %v", count, id, err)
	}
	if err := d.QueryRow(ctx, "SELECT raw FROM things WHERE id = ? AND name = ?", big, "naïve").Scan(&raw); err != nil || string(raw) != "\x00\xff" {
		t.Errorf("%x, %v", raw, err)
	}
	both := fstest.MapFS{"schema/01-first.sql": first, "schema/02-next.sql": next}
	if err := d.Migrate(ctx, "things", both); err != nil {
		t.Fatal(err)
	}
	if err := replica.Migrate(ctx, "things", both); err != nil {
		t.Fatal(err)
	}
	if err := replica.Migrate(ctx, "things", fstest.MapFS{"schema/01-first.sql": first}); err == nil || !strings.Contains(err.Error(), "a newer Mayfly") {
		t.Errorf("tables of a newer program: %v", err)
	}
	broken := fstest.MapFS{"schema/01-first.sql": first, "schema/02-next.sql": next, "schema/03-broken.sql": &fstest.MapFile{Data: []byte("CREATE TABLE others (id INTEGER); CREATE NONSENSE;")}}
	if err := d.Migrate(ctx, "things", broken); err == nil || !strings.Contains(err.Error(), "03-broken.sql") {
		t.Errorf("a broken step: %v", err)
	}
	if _, err := d.Query(ctx, "SELECT id FROM others"); err == nil {
		t.Error("half of a step was kept")
	}
}

// TestFileOfItsOwner: what is in the database is nobody else's to read.
func TestFileOfItsOwner(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/a file?with#marks%20.db"
	d := storetest.Open(t, store.Config{Path: setting.Path(path)})
	if err := d.Migrate(t.Context(), "things", fstest.MapFS{"schema/01.sql": first}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestTemporaryFiles: what is sorted goes beside the database, whatever its folder's name.
func TestTemporaryFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `it's "a" 100% ?dir#;`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for path, want := range map[string]string{filepath.Join(dir, "x.db"): dir, "x.db": "."} {
		d, got := storetest.Open(t, store.Config{Path: setting.Path(path)}), ""
		if err := d.Write(t.Context(), func(tx store.Handle) error {
			return tx.QueryRow(t.Context(), "PRAGMA temp_store_directory").Scan(&got)
		}); err != nil || got != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	secret := setting.Secret{Env: "PASSWORD"}
	for name, c := range map[string]struct {
		store.Config
		fault string
	}{
		"none":             {store.Config{}, ""},
		"file":             {store.Parse("index.db"), ""},
		"URL":              {store.Parse("postgres://mayfly@db/mayfly"), ""},
		"socket":           {store.Parse("postgresql:///mayfly?host=/run/postgresql"), ""},
		"with a password":  {store.Config{URL: "postgres://db/mayfly", Password: secret}, ""},
		"both":             {store.Config{Path: "a", URL: "postgres://db/mayfly"}, "store: names both"},
		"another database": {store.Config{URL: "mysql://db/mayfly"}, "store.url: isn't postgres://"},
		"no URL":           {store.Config{URL: "postgres://%zz:hunter2@"}, "store.url: isn't postgres://"},
		"password in it":   {store.Config{URL: "postgres://a:hunter2@db/mayfly"}, "store.url: has a password"},
		"password alone":   {store.Config{Path: "a", Password: secret}, "store.password: only goes with url"},
	} {
		var f setting.Faults
		c.Check("store", &f)
		err := f.Err()
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.HasPrefix(err.Error(), c.fault)) {
			t.Errorf("%s: %v, want %q", name, err, c.fault)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTLS: beyond this machine the server's name is verified, unless the URL says otherwise.
func TestTLS(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://mayfly@db.example/mayfly":                 "sslmode=verify-full",
		"postgres://mayfly@db.example/mayfly?sslmode=disable": "sslmode=disable",
		"postgres://mayfly@127.0.0.1/mayfly":                  "",
		"postgres:///mayfly?host=/run/postgresql":             "host=/run/postgresql",
	} {
		got, err := store.Postgres(store.Config{URL: url})
		if err != nil || !strings.Contains(got.RawQuery, want) || want == "" && got.RawQuery != "" {
			t.Errorf("%s: %v, %v", url, got, err)
		}
	}
}
