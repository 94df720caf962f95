package read

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/peer"
)

func placeOf(t *testing.T, b *Budget, address string) *Place {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.RemoteAddr = address
	p, err := b.Enter(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestWhoReadsFastWaits: beyond its burst an address reads at its rate, is refused
// rather than held for long, and keeps nobody else waiting.
func TestWhoReadsFastWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget()
		p := placeOf(t, b, "198.51.100.1:1")
		begin := time.Now()
		for range readBurst / readRate {
			if err := p.spend(t.Context(), readRate); err != nil || time.Since(begin) > 0 {
				t.Fatalf("within the burst: %v after %v", err, time.Since(begin))
			}
		}
		if err := p.spend(t.Context(), readRate/2); err != nil || time.Since(begin) != time.Second/2 {
			t.Errorf("half a second's bytes: %v after %v", err, time.Since(begin))
		}
		var refused *Refusal
		if err := p.spend(t.Context(), 3*readRate); !errors.As(err, &refused) || refused.Status != http.StatusTooManyRequests || refused.RetryAfter < 3 {
			t.Errorf("three seconds' bytes: %v", err)
		}
		if err := placeOf(t, b, "198.51.100.2:1").spend(t.Context(), readBurst); err != nil || time.Since(begin) != time.Second/2 {
			t.Errorf("another address: %v after %v", err, time.Since(begin))
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.spend(gone, readRate/4); !errors.Is(err, context.Canceled) {
			t.Errorf("who went away: %v", err)
		}
	})
}

// TestPlacesAreBounded: of places and bytes an address has an eighth, all are given back,
// and a turn to compute is given back by whoever leaves with it.
func TestPlacesAreBounded(t *testing.T) {
	t.Parallel()
	b := NewBudget()
	one := placeOf(t, b, "[2001:db8::1]:1")
	var refused *Refusal
	if err := one.Take(maxBytesEach + 1); !errors.As(err, &refused) || refused.Status != http.StatusTooManyRequests {
		t.Errorf("more bytes than an address has: %v", err)
	}
	if err := one.Take(maxBytesEach); err != nil {
		t.Error(err)
	}
	if err := placeOf(t, b, "[2001:db8::2]:1").Take(1); !errors.Is(err, errShare) {
		t.Errorf("another address of the same /64: %v", err)
	}
	for range cap(b.work) {
		if err := placeOf(t, b, "[2001:db8:1::1]:1").compute(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := one.compute(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a turn beyond those there are: %v", err)
	}
	fresh := NewBudget()
	p := placeOf(t, fresh, "198.51.100.1:1")
	if err := errors.Join(p.Take(7), p.compute(t.Context())); err != nil {
		t.Fatal(err)
	}
	p.Leave()
	if len(fresh.work) != 0 || fresh.all != (use{}) || len(fresh.each) != 0 {
		t.Errorf("left with %d turns, %+v, %v", len(fresh.work), fresh.all, fresh.each)
	}
}

// TestWhoARequestCountsFor: the client that a trusted proxy speaks for goes before the
// other end of the connection.
func TestWhoARequestCountsFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ remote, peer, want string }{
		{"198.51.100.1:1", "", "198.51.100.1/32"},
		{"[::ffff:198.51.100.1]:1", "", "198.51.100.1/32"},
		{"[2001:db8:1:2:3::4]:1", "", "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1", "", "fe80::/64"},
		{"10.0.0.1:1", "198.51.100.7", "198.51.100.7/32"},
		{"10.0.0.1:1", "2001:db8::9", "2001:db8::/64"},
		{"@", "", "invalid Prefix"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.RemoteAddr = tt.remote
		if tt.peer != "" {
			r = r.WithContext(peer.NewContext(r.Context(), &peer.Peer{Addr: named(tt.peer)}))
		}
		if got := Network(r).String(); got != tt.want {
			t.Errorf("%s by %s: %s, want %s", tt.peer, tt.remote, got, tt.want)
		}
	}
}

type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }
