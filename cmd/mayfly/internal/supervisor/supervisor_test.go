package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestSystemdIsTold: what a service says arrives at the socket as systemd reads it.
func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	for name, socket := range map[string]string{"a path": filepath.Join(t.TempDir(), "notify"), "the abstract namespace": "@mayfly-test-" + strconv.Itoa(os.Getpid())} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer systemd.Close()
			environment := map[string]string{"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": strconv.Itoa(os.Getpid())}
			s := FromEnvironment(func(name string) string { return environment[name] })
			hear := func(want string) {
				t.Helper()
				b := make([]byte, 256)
				err := systemd.SetReadDeadline(time.Now().Add(time.Minute))
				n, readErr := systemd.Read(b)
				if err := errors.Join(err, readErr); err != nil || string(b[:n]) != want {
					t.Errorf("heard %q, %v; want %q", b[:n], err, want)
				}
			}
			for _, tell := range []func() error{s.Ready, s.Reloading, s.Stopping} {
				if err := tell(); err != nil {
					t.Fatal(err)
				}
			}
			hear("READY=1")
			hear("RELOADING=1")
			hear("STOPPING=1")
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- s.Watch(ctx) }()
			hear("WATCHDOG=1")
			hear("WATCHDOG=1")
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNobodyAsked(t *testing.T) {
	t.Parallel()
	for name, environment := range map[string]map[string]string{
		"no supervisor": nil, "another's watchdog": {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1", "NOTIFY_SOCKET": "/nowhere"},
	} {
		s := FromEnvironment(func(name string) string { return environment[name] })
		if err := s.Watch(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Supervisor{}).Ready(); err != nil {
		t.Error(err)
	}
	if err := (Supervisor{socket: "/nowhere/notify"}).Ready(); err == nil {
		t.Error("a socket that isn't there was told")
	}
}
