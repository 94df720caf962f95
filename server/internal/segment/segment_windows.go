// Package segment can't bound segments on Windows.
package segment

import (
	"errors"
	"net"
)

// Limit fails.
func Limit(net.Listener, int) error { return errors.ErrUnsupported }
