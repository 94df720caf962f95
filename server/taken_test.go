package server

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestAllTakenAddressesAreNamed: one start says every address that is taken.
func TestAllTakenAddressesAreNamed(t *testing.T) {
	t.Parallel()
	var taken []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		taken = append(taken, l.Addr().String())
	}
	c := DefaultConfig()
	c.HTTPAddress, c.GRPCAddress, c.MetricsAddress = taken[0], "127.0.0.1:0", taken[1]
	s := &Server{config: c, with: Options{Logger: slog.New(slog.DiscardHandler)}, metrics: &metrics{evicted: prometheus.NewCounter(prometheus.CounterOpts{Name: "evicted"})}}
	err := s.Listen(t.Context())
	if err == nil || !strings.Contains(err.Error(), taken[0]) || !strings.Contains(err.Error(), taken[1]) {
		t.Errorf("%v; want both of %v", err, taken)
	}
}
