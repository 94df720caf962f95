package pemfile_test

import (
	"bytes"
	"encoding/pem"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// FuzzFile: any bytes are read or refused, by every reader; certificates that were
// read are the same when they are written as PEM and read again. Without a
// passphrase, since an encrypted file says itself how long its decryption takes.
func FuzzFile(f *testing.F) {
	key, now := catest.Key(f), time.Now()
	root := catest.Sign(f, catest.Authority("Example", "root", now, now.Add(time.Hour)), nil, key.Public(), key)
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	f.Add(chain)
	f.Add(append([]byte("\xef\xbb\xbf"), chain...))
	f.Add(utf16Of(chain, true, false))
	f.Add([]byte{0x30, 0x80})
	for _, label := range []string{"PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PUBLIC KEY", "PKCS7", "CERTIFICATE REQUEST"} {
		f.Add(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: root.Raw}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := pemfile.PrivateKey(b, nil); err == nil && key.Public() == nil {
			t.Error("a key without a public half")
		}
		if _, key, err := pemfile.PublicKey(b); err == nil && key == nil {
			t.Error("no key and no error")
		}
		_, _ = pemfile.Request(b)
		_, _ = pemfile.CertificatesAmong(b)
		certs, err := pemfile.Certificates(b)
		if err != nil {
			return
		}
		if len(certs) == 0 {
			t.Fatal("no certificate and no error")
		}
		var text bytes.Buffer
		for _, c := range certs {
			if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
				t.Fatal(err)
			}
		}
		again, err := pemfile.Certificates(text.Bytes())
		if err != nil || len(again) != len(certs) {
			t.Fatalf("%d certificates became %d: %v", len(certs), len(again), err)
		}
		if _, err := pemfile.Pool(b); err != nil {
			t.Errorf("no pool of certificates that are read: %v", err)
		}
	})
}
