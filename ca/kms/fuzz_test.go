package kms

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

// FuzzKeyFile: a key file of any bytes is read or refused, and what is read has
// an algorithm or a reason to be refused. Without a passphrase, since an
// encrypted file says itself how long its decryption takes.
func FuzzKeyFile(f *testing.F) {
	key, err := ECDSAP256.generate()
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
		block, err := onlyBlock(b)
		if err != nil {
			return
		}
		key, err := parseKey(block, nil)
		if err != nil {
			return
		}
		if _, err := AlgorithmOf(key.Public()); err == nil && key.Public() == nil {
			t.Error("an algorithm without a key")
		}
	})
}

// FuzzSealedKey: a sealed key's file of any bytes is read or refused. What is
// read is encoded as it stood, and names one KMS key.
func FuzzSealedKey(f *testing.F) {
	k := sealedKey{
		Format: sealedFormat, KMSKey: "hashivault://transit/keys/sealing?version=1", Algorithm: ECDSAP256,
		SPKI: strings.Repeat("ab", 32), DataKey: []byte("data key"), Nonce: make([]byte, 12), Key: make([]byte, 64),
	}
	good, err := k.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("hashivault"), []byte("awskms"), 1))
	f.Add(bytes.Replace(good, []byte("nonce"), []byte("NONCE"), 1))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, by, err := parseSealedKey(b)
		if err != nil {
			return
		}
		again, err := k.encode()
		if err != nil || !bytes.Equal(again, b) || by.String() != k.KMSKey || checkAbout(k.about()) != nil {
			t.Errorf("%s: %v, %v", b, by, err)
		}
	})
}
