//go:build !windows

// Package segment bounds the segments of TCP connections.
package segment

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Limit has the connections that l accepts take segments of so many bytes at most
// (RFC 9293 §3.7.1). A listener that isn't TCP's stays as it is.
func Limit(l net.Listener, most int) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, most) })
	return errors.Join(err, failed)
}
