// Package unixsocket has no sockets to offer on Windows.
package unixsocket

import (
	"context"
	"errors"
	"net"
)

// MaxPath is the longest path, as elsewhere.
const MaxPath = 103

// Listen fails: who may connect is a matter of Unix's modes.
func Listen(context.Context, string) (net.Listener, error) { return nil, errors.ErrUnsupported }
