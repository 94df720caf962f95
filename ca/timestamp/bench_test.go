package timestamp

import (
	"crypto"
	"crypto/sha256"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// A timestamp beside the bare signature that it can't do without.
func BenchmarkTimestamp(b *testing.B) {
	for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072} {
		f, _, _ := force(b, newAuthority(b, algorithm).load(b))
		a := f.current.Load()
		query := newAsk().der()
		b.Run(string(algorithm)+"/timestamp", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, refused := f.ReplyDER(b.Context(), query); refused != nil {
					b.Fatal(refused)
				}
			}
		})
		sum := sha256.Sum256(query)
		digest, hash := sum[:], crypto.SHA256
		if a.template.hash != hash {
			h := a.template.hash.New()
			digest, hash = h.Sum(nil), a.template.hash
		}
		b.Run(string(algorithm)+"/signature", func(b *testing.B) {
			for b.Loop() {
				if _, err := a.signer.Sign(b.Context(), digest, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
