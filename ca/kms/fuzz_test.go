package kms

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// anyReference is a registry that takes every reference as it stands.
func anyReference() Registry {
	return Registry{{Name: "any", URISchemes: []string{"any"}, Parse: func(ref string, _ Access) (Reference, error) {
		if ref == "" {
			return nil, errors.New("names no key")
		}
		return named(ref), nil
	}}}
}

type named string

func (n named) String() string { return "any:" + string(n) }

// FuzzSealedKey: a sealed key's file of any bytes is read or refused. What is
// read is encoded as it stood, and names one KMS key.
func FuzzSealedKey(f *testing.F) {
	k := sealedKey{
		Format: sealedFormat, KMSKey: "any:sealing", Algorithm: ECDSAP256,
		SPKI: strings.Repeat("ab", 32), DataKey: []byte("data key"), Nonce: make([]byte, 12), Key: make([]byte, 64),
	}
	good := k.encode()
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("any"), []byte("other"), 1))
	f.Add(bytes.Replace(good, []byte("nonce"), []byte("NONCE"), 1))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, by, err := anyReference().parseSealedKey(b)
		if err != nil {
			return
		}
		if !bytes.Equal(k.encode(), b) || by.String() != k.KMSKey || !aboutForm.MatchString(k.about()) {
			t.Errorf("%s: %v, %v", b, by, err)
		}
	})
}
