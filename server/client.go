package server

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// headerForwarded is the header in which proxies name whom they speak for; in
// gRPC's metadata it is in lower case.
const headerForwarded = "X-Forwarded-For"

// maxForwarded is how many hops of headerForwarded are looked at: more proxies
// than that stand before nobody.
const maxForwarded = 16

// proxies are the networks whose word on their clients' addresses is taken.
type proxies []netip.Prefix

func (p proxies) trust(a netip.Addr) bool {
	for _, network := range p {
		if network.Contains(a) {
			return true
		}
	}
	return false
}

// client is who sent a request that came from the peer with the values of
// X-Forwarded-For. Each proxy adds at the end whom it heard, so the list is read
// from there for as long as proxies that are trusted vouch for the one before:
// what a client writes into it himself is never reached.
func (p proxies) client(from netip.Addr, forwarded []string) netip.Addr {
	hops := 0
	for i := len(forwarded) - 1; i >= 0; i-- {
		rest := forwarded[i]
		for rest != "" || hops == 0 {
			if hops++; hops > maxForwarded || !p.trust(from) {
				return from
			}
			at := strings.LastIndexByte(rest, ',')
			next, ok := parseHop(rest[at+1:])
			if !ok {
				return from
			}
			from = next
			rest = rest[:max(at, 0)]
		}
	}
	return from
}

// parseHop reads one entry: an address, which some proxies write with its port.
func parseHop(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// located gives ctx, which knows the peer of its connection, the client that a
// trusted proxy spoke for. It returns the client's address; the zero one when
// the peer has none.
func (s *Server) located(ctx context.Context, forwarded []string) (context.Context, netip.Addr) {
	from := addressOf(ctx)
	trusted := s.terms.Load().proxies
	if len(trusted) == 0 || len(forwarded) == 0 || !trusted.trust(from) {
		return ctx, from
	}
	client := trusted.client(from, forwarded)
	return peer.NewContext(ctx, &peer.Peer{Addr: address(client.String())}), client
}

// addressOf is the address of ctx's peer.
func addressOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	a, _ := parseHop(p.Addr.String())
	return a
}

// locatedGRPC is located for a gRPC request.
func (s *Server) locatedGRPC(ctx context.Context) (context.Context, netip.Addr) {
	return s.located(ctx, metadata.ValueFromIncomingContext(ctx, headerForwarded))
}
