package loopback_test

import (
	"testing"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

func TestOnlyLoopbackNamesAndAddressesAreLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true,
		"0:0:0:0:0:0:0:1": true, "::ffff:127.0.0.1": true,

		"": false, "localhost.": false, "ca.localhost": false, "localhost.example.net": false, "notlocalhost": false,
		"127.example.net": false, "127.0.0.1.example.net": false, "127.1": false, "127": false, "0177.0.0.1": false,
		"2130706433": false, "0x7f.0.0.1": false, "127.0.0.1.": false, "127.0.0.1:80": false, "[::1]": false,
		"0.0.0.0": false, "::": false, "::2": false, "::ffff:10.0.0.1": false, "128.0.0.1": false, "10.0.0.1": false,
		"fe80::1": false, " 127.0.0.1": false, "127.0.0.1\n": false, "loc\u0430lhost": false, "localho\u017ft": false,
	} {
		if got := loopback.Host(host); got != want {
			t.Errorf("Host(%q) = %v, want %v", host, got, want)
		}
	}
}
