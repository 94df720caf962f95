package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// refusedNetworks are those of no issuer on the public Internet: what a name
// that an issuer chooses must not lead us to (IANA's special-purpose registries,
// RFC 6890). Where an address carries another, the other is judged instead.
var refusedNetworks = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),        // this network, RFC 791 §3.2
	netip.MustParsePrefix("10.0.0.0/8"),       // private, RFC 1918
	netip.MustParsePrefix("100.64.0.0/10"),    // carrier-grade NAT, RFC 6598; a cloud's metadata
	netip.MustParsePrefix("127.0.0.0/8"),      // loopback, RFC 1122 §3.2.1.3
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's metadata, on a public address
	netip.MustParsePrefix("169.254.0.0/16"),   // link-local, RFC 3927; 169.254.169.254 is metadata
	netip.MustParsePrefix("172.16.0.0/12"),    // private, RFC 1918
	netip.MustParsePrefix("192.0.0.0/24"),     // IETF protocol assignments, RFC 6890; a cloud's metadata
	netip.MustParsePrefix("192.0.2.0/24"),     // documentation, RFC 5737
	netip.MustParsePrefix("192.88.99.0/24"),   // 6to4 relays, RFC 7526
	netip.MustParsePrefix("192.168.0.0/16"),   // private, RFC 1918
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarking, RFC 2544
	netip.MustParsePrefix("198.51.100.0/24"),  // documentation, RFC 5737
	netip.MustParsePrefix("203.0.113.0/24"),   // documentation, RFC 5737
	netip.MustParsePrefix("224.0.0.0/4"),      // multicast, RFC 5771
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved, RFC 1112 §4, and broadcast
	netip.MustParsePrefix("::/96"),            // unspecified, loopback, IPv4-compatible, RFC 4291 §2.5
	netip.MustParsePrefix("64:ff9b:1::/48"),   // local translation, RFC 8215
	netip.MustParsePrefix("100::/64"),         // discard, RFC 6666
	netip.MustParsePrefix("2001::/23"),        // IETF protocol assignments and Teredo, RFC 2928
	netip.MustParsePrefix("2001:db8::/32"),    // documentation, RFC 3849
	netip.MustParsePrefix("2002::/16"),        // 6to4, RFC 3056
	netip.MustParsePrefix("3fff::/20"),        // documentation, RFC 9637
	netip.MustParsePrefix("5f00::/16"),        // segment routing, RFC 9602
	netip.MustParsePrefix("fc00::/7"),         // unique local, RFC 4193; fd00:ec2::254 is metadata
	netip.MustParsePrefix("fe80::/10"),        // link-local, RFC 4291 §2.5.6
	netip.MustParsePrefix("fec0::/10"),        // site-local, RFC 3879
	netip.MustParsePrefix("ff00::/8"),         // multicast, RFC 4291 §2.7
}

// nat64 carries an IPv4 address in its last 32 bits (RFC 6052 §2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

var loopbackNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// dialPolicy says which addresses may be connected to: those of the public
// Internet, and of the networks that the issuer's configuration allows.
type dialPolicy []netip.Prefix

var errAddress = errors.New("the address is not one of the public Internet, and allow_networks doesn't allow it")

// check judges one address. An IPv4 address inside an IPv6 one is judged as
// what it is: a connection to ::ffff:127.0.0.1 is one to 127.0.0.1.
func (p dialPolicy) check(a netip.Addr) error {
	zoned := a.Zone() != ""
	a = a.WithZone("").Unmap()
	in := func(n netip.Prefix) bool { return n.Contains(a) }
	if slices.ContainsFunc(p, in) {
		return nil
	}
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
		if slices.ContainsFunc(p, in) {
			return nil
		}
	}
	if zoned || !a.IsValid() || slices.ContainsFunc(refusedNetworks, in) {
		return errAddress
	}
	return nil
}

// control is for [net.Dialer]: it sees each address after the name was
// resolved, at the moment before the connection, so no answer of a name server
// can come between the check and its use.
func (p dialPolicy) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if network != "tcp4" && network != "tcp6" || err != nil || p.check(at.Addr()) != nil {
		return fmt.Errorf("connecting to %s over %s: %w", address, network, errAddress)
	}
	return nil
}
