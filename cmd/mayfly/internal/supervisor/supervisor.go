// Package supervisor tells systemd how a service is: sd_notify(3). Without a
// supervisor that asks for it, nothing is told.
package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Supervisor is who started this process; the zero value is nobody.
type Supervisor struct {
	socket   string
	watchdog time.Duration // how often it wants to hear of us; 0 never
}

// FromEnvironment finds the supervisor in NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
func FromEnvironment(getenv func(string) string) Supervisor {
	s := Supervisor{socket: getenv("NOTIFY_SOCKET")}
	if name, ok := strings.CutPrefix(s.socket, "@"); ok { // the abstract namespace: unix(7)
		s.socket = "\x00" + name
	}
	pid := getenv("WATCHDOG_PID")
	if micros, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && micros > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.watchdog = time.Duration(micros) * time.Microsecond
	}
	return s
}

// Ready says that the service takes requests, or has taken up another configuration.
func (s Supervisor) Ready() error { return s.tell("READY=1") }

// Reloading says that the configuration is being read again; Ready ends that.
func (s Supervisor) Reloading() error { return s.tell("RELOADING=1") }

// Stopping says that the service drains.
func (s Supervisor) Stopping() error { return s.tell("STOPPING=1") }

// Watch tells the supervisor that the process lives, twice as often as it asked for,
// until ctx ends. An error ends it.
func (s Supervisor) Watch(ctx context.Context) error {
	if s.socket == "" || s.watchdog == 0 {
		return nil
	}
	ticker := time.NewTicker(s.watchdog / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := s.tell("WATCHDOG=1"); err != nil {
				return err
			}
		}
	}
}

// tell sends one datagram.
func (s Supervisor) tell(state string) error {
	if s.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the supervisor: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("telling the supervisor: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the supervisor: %w", err)
	}
	return nil
}
