package pubkey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

func TestOnlyTheSameKeyIsEqual(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(pubkey.Curves[0].Curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	same := key.PublicKey
	for name, tt := range map[string]struct {
		a, b crypto.PublicKey
		want bool
	}{
		"the same": {key.Public(), &same, true}, "another kind": {key.Public(), other, false},
		"no key": {nil, key.Public(), false}, "against none": {key.Public(), nil, false}, "two of none": {nil, nil, false},
	} {
		if got := pubkey.Equal(tt.a, tt.b); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestCurves: the table says what crypto/x509 writes.
func TestCurves(t *testing.T) {
	t.Parallel()
	for _, c := range pubkey.Curves {
		key, err := ecdsa.GenerateKey(c.Curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		var spki struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
		}
		var oid asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(der, &spki); err != nil {
			t.Fatal(err)
		}
		if _, err := asn1.Unmarshal(spki.Algorithm.Parameters.FullBytes, &oid); err != nil {
			t.Fatal(err)
		}
		if found, ok := pubkey.NamedCurve(oid); !ok || found.Curve != c.Curve {
			t.Errorf("%s: crypto/x509 names it %v", c.Algorithm, oid)
		}
		if c.Hash.Size()*8 < min(c.Params().BitSize, 512) {
			t.Errorf("%s: its hash is weaker than the curve", c.Algorithm)
		}
	}
	if _, ok := pubkey.NamedCurve(asn1.ObjectIdentifier{1, 3, 132, 0, 33}); ok {
		t.Error("P-224 is not accepted")
	}
}
