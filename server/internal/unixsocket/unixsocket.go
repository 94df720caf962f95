//go:build !windows

// Package unixsocket listens on Unix sockets that have a name in the file system.
package unixsocket

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/internal/filelock"
)

// umask leaves owner and group what connecting takes, whatever the process's own: a proxy
// belongs to the group. It takes nothing from folders that are made meanwhile.
const umask = 0o007

// masking is held while the umask, which is the process's, isn't its own.
var masking sync.Mutex

// MaxPath is the longest path, in bytes, that every system takes (macOS has 104 with the final 0).
const MaxPath = 103

// patience is how long another start may take that looks at the same folder.
const patience = 2 * time.Second

// Listen listens at path. A socket there whose process is gone is removed. What else is
// there stays, and is an error, which wraps EADDRINUSE where a process listens. The name
// goes when the listener is closed. Errors are those of net.Listen.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	var known *net.OpError
	if err == nil || errors.As(err, &known) && known.Op == "listen" {
		return l, err
	}
	return nil, &net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close() // which gives up the lock: two starts at once don't remove each other's socket
	if err := filelock.Retry(ctx, patience, func() error { return filelock.Take(folder) }); err != nil {
		return nil, err
	}
	if err := makeRoom(ctx, path); err != nil {
		return nil, err
	}
	// The socket has its mode from the first moment. What changed it by name later could be
	// led elsewhere by whoever may write the folder.
	masking.Lock()
	defer masking.Unlock()
	before := unix.Umask(umask)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	unix.Umask(before)
	return l, err
}

// makeRoom removes the socket of a process that is gone.
func makeRoom(ctx context.Context, path string) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("something is there that isn't a socket: move it elsewhere, or give the socket another path")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(unix.EADDRINUSE, conn.Close())
	case errors.Is(err, unix.ECONNREFUSED): // nobody listens
		return os.Remove(path)
	}
	return err
}
