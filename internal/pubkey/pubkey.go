// Package pubkey holds what every part that handles public keys must agree on.
package pubkey

import (
	"crypto"
	"crypto/elliptic"
	"encoding/asn1"
	"slices"

	// The hashes of Curves; crypto.Hash.New needs them linked.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// Equal reports whether two public keys of any types are the same.
func Equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Curve is a curve whose keys are accepted.
type Curve struct {
	elliptic.Curve
	OID       asn1.ObjectIdentifier // RFC 5480 §2.1.1.1
	Algorithm string                // the name of the keys' algorithm
	Hash      crypto.Hash           // no weaker than the curve: FIPS 186-5 §6.1
}

// Curves are all of them.
var Curves = []Curve{
	{elliptic.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, "ECDSA-P256", crypto.SHA256},
	{elliptic.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}, "ECDSA-P384", crypto.SHA384},
	{elliptic.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}, "ECDSA-P521", crypto.SHA512},
}

// NamedCurve is the curve that oid names.
func NamedCurve(oid asn1.ObjectIdentifier) (Curve, bool) {
	i := slices.IndexFunc(Curves, func(c Curve) bool { return c.OID.Equal(oid) })
	if i < 0 {
		return Curve{}, false
	}
	return Curves[i], true
}
