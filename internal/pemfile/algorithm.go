package pemfile

import (
	"cmp"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// The algorithm of keys on a curve (RFC 5480 §2.1.1), and of RSA (RFC 8017).
var (
	oidEC  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

const accepted = "use ECDSA P-256, P-384 or P-521, or RSA of 2048, 3072 or 4096 bits"

// named is the object identifier in words.
func named(oid asn1.ObjectIdentifier, kind string) string {
	return "the " + kind + " " + cmp.Or(pubkey.Unsupported[oid.String()], oid.String())
}

// algorithmFault says what about an AlgorithmIdentifier (RFC 5280 §4.1.1.2) of a key
// can't be used; nil where it isn't that. convert makes a key with a named curve.
func algorithmFault(algorithm cryptobyte.String, convert string) error {
	var oid asn1.ObjectIdentifier
	if !algorithm.ReadASN1ObjectIdentifier(&oid) || oid.Equal(oidRSA) {
		return nil
	}
	if oid.Equal(oidEC) {
		return curveFault(algorithm, convert)
	}
	if oid.String() == "1.3.101.112" { // Ed25519 is read, and refused elsewhere where it can't be used
		return nil
	}
	return fmt.Errorf("holds a key of %s, which isn't supported: %s", named(oid, "algorithm"), accepted)
}

// curveFault does the same for ECParameters (RFC 5480 §2.1.1).
func curveFault(parameters cryptobyte.String, convert string) error {
	var oid asn1.ObjectIdentifier
	var explicit, field cryptobyte.String
	if parameters.PeekASN1Tag(cryptobyteasn1.OBJECT_IDENTIFIER) {
		damaged := !parameters.ReadASN1ObjectIdentifier(&oid)
		if _, known := pubkey.NamedCurve(oid); damaged || known {
			return nil
		}
		return fmt.Errorf("holds a key on %s, which isn't supported: %s", named(oid, "curve"), accepted)
	}
	// ANSI X9.62: ECParameters, version 1, with the field's prime.
	prime := new(big.Int)
	if !parameters.ReadASN1(&explicit, cryptobyteasn1.SEQUENCE) || !explicit.SkipASN1(cryptobyteasn1.INTEGER) ||
		!explicit.ReadASN1(&field, cryptobyteasn1.SEQUENCE) || !field.SkipASN1(cryptobyteasn1.OBJECT_IDENTIFIER) || !field.ReadASN1Integer(prime) {
		return nil
	}
	for _, c := range pubkey.Curves {
		if c.Params().P.Cmp(prime) == 0 {
			return fmt.Errorf("spells out the parameters of the curve %s, where RFC 5480 §2.1.1 wants its name: %s", c.Params().Name, convert)
		}
	}
	return errors.New("spells out the parameters of a curve that isn't supported: " + accepted)
}

// certificateAlgorithm is the algorithmFault of a certificate's key (RFC 5280 §4.1).
func certificateAlgorithm(der []byte) error {
	var outer, fields, spki, algorithm cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&outer, cryptobyteasn1.SEQUENCE) || !outer.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) ||
		!fields.SkipOptionalASN1(cryptobyteasn1.Tag(0).ContextSpecific().Constructed()) || !fields.SkipASN1(cryptobyteasn1.INTEGER) {
		return nil
	}
	for range 4 { // signature, issuer, validity, subject
		if !fields.SkipASN1(cryptobyteasn1.SEQUENCE) {
			return nil
		}
	}
	if !fields.ReadASN1(&spki, cryptobyteasn1.SEQUENCE) || !spki.ReadASN1(&algorithm, cryptobyteasn1.SEQUENCE) {
		return nil
	}
	return algorithmFault(algorithm, "have it issued again for a key with a named curve (`openssl pkey -in KEY -ec_param_enc named_curve -out NEW.pem`)")
}
