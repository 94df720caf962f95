package unixsocket_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/server/internal/unixsocket"
)

// abandon leaves a socket as a process does that is killed.
func abandon(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := unixsocket.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestSocketIsForOwnerAndGroup(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o770 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestSocketOfADeadProcessIsRemoved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	abandon(t, path)
	listen(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// What isn't a dead process's socket stays as it is.
func TestWhatIsThereStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live, file, link := filepath.Join(dir, "live"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	first := listen(t, live)
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, "dead")
	abandon(t, dead)
	if err := os.Symlink(dead, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{live: unix.EADDRINUSE, file: nil, link: nil, filepath.Join(dir, "none", "s"): os.ErrNotExist} {
		l, err := unixsocket.Listen(t.Context(), path)
		if err == nil {
			t.Errorf("%s: taken", path)
			_ = l.Close()
			continue
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "text" {
		t.Errorf("the file: %q, %v", text, err)
	}
	if _, err := os.Lstat(dead); err != nil {
		t.Errorf("behind the link: %v", err)
	}
	probe, err := first.Accept() // the question whether somebody listens
	if err != nil {
		t.Fatal(err)
	}
	_ = probe.Close()
	conn, err := net.Dial("unix", live)
	if err != nil {
		t.Errorf("the one that listens isn't reached any more: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// Of those that start at once beside a dead process's socket, one gets it, and is reached.
func TestOneOfManyListens(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	abandon(t, path)
	var all sync.WaitGroup
	var got atomic.Pointer[net.Listener]
	for range 16 {
		all.Go(func() {
			l, err := unixsocket.Listen(t.Context(), path)
			switch {
			case err == nil && !got.CompareAndSwap(nil, &l):
				t.Error("a second one listens")
				_ = l.Close()
			case err != nil && !errors.Is(err, unix.EADDRINUSE):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got.Load() == nil {
		t.Fatal("nobody listens")
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := (*got.Load()).Close(); err != nil {
		t.Error(err)
	}
}
