//go:build pkcs11 && cgo

package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"

	"github.com/miekg/pkcs11"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// public reads the public key of a private one, from where tokens keep it: the
// private key itself, the public key of the same id or label, or a certificate.
// The trial signature shows later that they belong together.
func (m *module) public(session pkcs11.SessionHandle, private pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	if public := m.publicOf(session, private, pkcs11.CKO_PRIVATE_KEY); public != nil {
		return public, nil
	}
	for _, name := range []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL} {
		value := m.attribute(session, private, name)
		if value == nil {
			continue
		}
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE} {
			object, err := m.one(session, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(name, value),
			})
			if err != nil {
				continue
			}
			if public := m.publicOf(session, object, class); public != nil {
				return public, nil
			}
		}
	}
	return nil, errors.New("has no public key that can be read: store its public key or certificate beside it, under the same id")
}

// publicOf reads the public key that an object of a class holds, nil for none.
func (m *module) publicOf(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, class uint) crypto.PublicKey {
	if class == pkcs11.CKO_CERTIFICATE { // only there is CKA_VALUE public
		if c, err := x509.ParseCertificate(m.attribute(session, object, pkcs11.CKA_VALUE)); err == nil {
			return c.PublicKey
		}
		return nil
	}
	if der := m.attribute(session, object, pkcs11.CKA_PUBLIC_KEY_INFO); der != nil {
		if public, err := x509.ParsePKIXPublicKey(der); err == nil {
			return public
		}
	}
	if n, e := m.attribute(session, object, pkcs11.CKA_MODULUS), m.attribute(session, object, pkcs11.CKA_PUBLIC_EXPONENT); n != nil && e != nil {
		exponent := new(big.Int).SetBytes(e)
		if !exponent.IsInt64() || exponent.Int64() > 1<<31-1 {
			return nil
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}
	}
	point, parameters := m.attribute(session, object, pkcs11.CKA_EC_POINT), m.attribute(session, object, pkcs11.CKA_EC_PARAMS)
	if public := parsePoint(parameters, point); public != nil {
		return public
	}
	return nil
}

// parsePoint reads CKA_EC_PARAMS and CKA_EC_POINT (PKCS #11 v2.40 §2.3.3):
// a point is an OCTET STRING of the uncompressed form, or that form bare, as
// some tokens give it.
func parsePoint(parameters, point []byte) *ecdsa.PublicKey {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(parameters, &oid); err != nil || len(rest) > 0 {
		return nil
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	curve, ok := pubkey.NamedCurve(oid)
	if !ok {
		return nil
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve.Curve, point)
	if err != nil {
		return nil
	}
	return public
}
