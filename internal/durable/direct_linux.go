package durable

import "golang.org/x/sys/unix"

const directly = unix.O_DIRECT
