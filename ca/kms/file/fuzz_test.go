package file

import (
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// FuzzKeyFile: a key file of any bytes is read or refused, and what is read has
// an algorithm or a reason to be refused. Without a passphrase, since an
// encrypted file says itself how long its decryption takes.
func FuzzKeyFile(f *testing.F) {
	key, err := kms.ECDSAP256.Generate()
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	for _, kind := range []string{"PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PARAMETERS"} {
		f.Add(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := parseFile(b, nil)
		if err != nil {
			return
		}
		if _, err := kms.AlgorithmOf(key.Public()); err == nil && key.Public() == nil {
			t.Error("an algorithm without a key")
		}
	})
}
