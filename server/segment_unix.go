//go:build !windows

package server

import "golang.org/x/sys/unix"

func setSegment(fd uintptr, bytes int) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, bytes)
}
