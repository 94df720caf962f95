// Package storetest runs tests against each kind of store.
package storetest

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
)

// Each runs tests against each kind of store, each test against an empty database of its
// own, which the configuration opens as often as the test wants.
func Each(t *testing.T, tests map[string]func(t *testing.T, c store.Config)) {
	t.Helper()
	for name, test := range tests {
		t.Run("SQLite/"+name, func(t *testing.T) {
			test(t, store.Config{Path: setting.Path(filepath.Join(t.TempDir(), "store.db"))})
		})
	}
	server := Postgres(t)
	databases := Open(t, server)
	for name, test := range tests {
		t.Run("PostgreSQL/"+name, func(t *testing.T) {
			database := "test" + strings.ToLower(rand.Text())
			if _, err := databases.Exec(t.Context(), "CREATE DATABASE "+database); err != nil {
				t.Fatal(err)
			}
			test(t, store.Config{URL: strings.Replace(server.URL, "/postgres?", "/"+database+"?", 1)})
		})
	}
}

// Open opens a store until the test ends.
func Open(t testing.TB, c store.Config) *store.DB {
	t.Helper()
	d, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Postgres runs a PostgreSQL server of Debian's, reached by a Unix socket alone, until
// the test ends. It refuses to run as root, so another user has it then.
func Postgres(t testing.TB) store.Config {
	t.Helper()
	folder, err := os.MkdirTemp("", "pg") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	as := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("%v; on Debian, postgresql is a package", err)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(folder, int(uid), int(gid)); err != nil { // #nosec G115 -- 32 bits
			t.Fatal(err)
		}
	}
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(programs) == 0 {
		t.Fatal("no PostgreSQL in /usr/lib/postgresql; on Debian, postgresql is a package")
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(slices.Max(programs), name), args...) // #nosec G204 -- PostgreSQL's own
		cmd.Dir, cmd.SysProcAttr = folder, as
		return cmd
	}
	data := filepath.Join(folder, "data")
	if out, err := command("initdb", "--no-sync", "-A", "trust", "-U", "mayfly", "-E", "UTF8", "--locale", "C", "-D", data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	server := command("postgres", "-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+folder, "-c", "fsync=off")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT) // at once
		_ = server.Wait()
		_ = log.Close()
	})
	c := store.Config{URL: "postgres://mayfly@/postgres?host=" + folder}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		d, err := store.Open(t.Context(), c)
		if err == nil {
			_ = d.Close()
			return c
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("PostgreSQL doesn't answer: %v\n%s", err, text)
		}
	}
}
