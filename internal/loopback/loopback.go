// Package loopback tells this machine's own hosts from all others. What it calls
// loopback may be spoken to without TLS and may see secrets, so it is strict.
package loopback

import (
	"net/netip"
	"strings"
)

// Host reports whether host, without port and brackets, is `localhost` or the
// literal of a loopback address. Every other name is false, also one below
// `localhost` or one that resolves to loopback: what it resolves to can change.
func Host(host string) bool {
	if strings.ToLower(host) == "localhost" { // RFC 6761 §6.3; not EqualFold, to which "ſ" is an "s"
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
