package chain

import (
	"encoding/pem"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

// FuzzChain: a chain file of any bytes is read or refused.
func FuzzChain(f *testing.F) {
	key, noon := catest.Key(f), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	root := catest.Sign(f, catest.Authority("Example", "root", noon, noon.AddDate(1, 0, 0)), nil, key.Public(), key)
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
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
	})
}
