package extension

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
)

func FuzzSANs(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x81, 0x01, 'a'})
	f.Fuzz(func(t *testing.T, san []byte) {
		cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: OIDSAN, Value: san}}}
		for _, n := range SANs(cert) {
			if n.Type == "" {
				t.Error("a name without a type")
			}
		}
	})
}
