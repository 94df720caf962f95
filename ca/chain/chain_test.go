package chain

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestPathLengthLeavesRoomForWhatIsNeededBelow: a chain that issues leaves may have no room for one more CA below it.
func TestPathLengthLeavesRoomForWhatIsNeededBelow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pathLength, below int
		want              string
	}{
		{0, 0, ""},
		{1, 1, ""},
		{0, 1, "its path length 0 forbids the 1 CA certificates below it"},
	} {
		root := root(t, tt.pathLength)
		faults := Check([]*x509.Certificate{root}, Need{Now: noon, Lifetime: time.Hour, Below: tt.below}).Faults()
		if got := strings.Join(faults, "; "); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("path length %d, %d below: %q; want %q", tt.pathLength, tt.below, got, tt.want)
		}
	}
}

// root is a self-signed root.
func root(t testing.TB, pathLength int) *x509.Certificate {
	t.Helper()
	key, template := catest.Key(t), catest.Authority("Example", "root", noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0))
	template.MaxPathLen, template.MaxPathLenZero = pathLength, pathLength == 0
	return catest.Sign(t, template, nil, key.Public(), key)
}

// FuzzChain: a chain file of any bytes is read or refused, and what is read is
// checked without a panic.
func FuzzChain(f *testing.F) {
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root(f, 0).Raw})
	f.Add(b)
	f.Add(append(b, b...))
	f.Add(b[:len(b)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := Parse(b)
		if err != nil {
			return
		}
		if len(chain) == 0 || len(chain) > MaxLength {
			t.Errorf("%d certificates", len(chain))
		}
		for _, found := range Check(chain, Need{Now: noon, Lifetime: time.Hour}) {
			if found.Text == "" || found.At < 0 || found.At >= len(chain) {
				t.Errorf("found %+v", found)
			}
		}
	})
}
