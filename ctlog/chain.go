package ctlog

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// OIDPoison marks a precertificate (RFC 6962 §3.1); critical, its value is NULL.
var OIDPoison = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}

// OIDSCTList is the extension that carries the SCTs in a certificate (RFC 6962 §3.3).
var OIDSCTList = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// OIDPrecertificateSigning is the extended key usage of a certificate that signs
// precertificates in the place of their issuer (RFC 6962 §3.1).
var OIDPrecertificateSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 4}

// oidAuthorityKeyID is the authority key identifier (RFC 5280 §4.2.1.1).
var oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

// SignsPrecertificates reports whether c is a precertificate signing certificate:
// what it signs is logged as if c's own issuer had signed it (RFC 6962 §3.1).
func SignsPrecertificates(c *x509.Certificate) bool {
	return c != nil && c.BasicConstraintsValid && c.IsCA && slices.ContainsFunc(c.UnknownExtKeyUsage, OIDPrecertificateSigning.Equal)
}

// NewChain derives the values that a log signs from a precertificate and its
// issuers (direct issuer first). Where that is a precertificate signing
// certificate, they are those of the final certificate, whose issuer comes next
// (RFC 6962 §3.2). It parses at most these two, but verifies no signature.
func NewChain(precertificate []byte, issuers [][]byte) (Chain, error) {
	if len(issuers) == 0 {
		return Chain{}, errors.New("ctlog: a chain needs the certificate that signed the precertificate")
	}
	signer, err := x509.ParseCertificate(issuers[0])
	if err != nil {
		return Chain{}, fmt.Errorf("ctlog: parsing the direct issuer: %w", err)
	}
	tbs, err := PrecertificateTBS(precertificate, signer)
	if err != nil {
		return Chain{}, err
	}
	issuer := signer
	if SignsPrecertificates(signer) {
		if len(issuers) < 2 {
			return Chain{}, errors.New("ctlog: a chain with a precertificate signing certificate needs the certificate above it: it is the issuer")
		}
		if issuer, err = x509.ParseCertificate(issuers[1]); err != nil {
			return Chain{}, fmt.Errorf("ctlog: parsing the issuer: %w", err)
		}
		if !bytes.Equal(signer.RawIssuer, issuer.RawSubject) {
			return Chain{}, errors.New("ctlog: the precertificate signing certificate was issued by another than the certificate after it")
		}
	}
	return Chain{
		Precertificate: precertificate,
		Issuers:        issuers,
		IssuerKeyHash:  sha256.Sum256(issuer.RawSubjectPublicKeyInfo),
		TBS:            tbs,
	}, nil
}

// PrecertificateTBS is the TBSCertificate of a DER precertificate with the
// poison taken out and every other byte and the order of the other extensions
// kept. signer is the certificate whose key signed it, or nil for the issuer's;
// where it is a precertificate signing certificate, the issuer and the content of
// the authority key identifier become those of signer itself: the final issuer's
// (RFC 6962 §3.2). A certificate without exactly one critical poison is an error, and so is
// an authority key identifier that only one of the two has.
func PrecertificateTBS(precertificate []byte, signer *x509.Certificate) ([]byte, error) {
	var certificate, element cryptobyte.String
	input := cryptobyte.String(precertificate)
	if !input.ReadASN1(&certificate, cryptobyteasn1.SEQUENCE) || !input.Empty() ||
		!certificate.ReadASN1Element(&element, cryptobyteasn1.SEQUENCE) {
		return nil, errors.New("ctlog: the precertificate is not a DER certificate")
	}
	before, extensions, err := tbs.Split(element)
	if err != nil {
		return nil, fmt.Errorf("ctlog: the precertificate: %w", err)
	}
	kept, err := withoutPoison(extensions)
	if err != nil {
		return nil, err
	}
	if SignsPrecertificates(signer) {
		if before, err = withIssuerOf(before, signer); err != nil {
			return nil, err
		}
		if kept, err = withKeyIDOf(kept, signer); err != nil {
			return nil, err
		}
	}
	return tbs.Join(before, kept), nil
}

// withIssuerOf replaces the issuer, which must be the signer, by the signer's
// own, in the fields before the extensions (RFC 5280 §4.1).
func withIssuerOf(before []byte, signer *x509.Certificate) ([]byte, error) {
	var version, serial, algorithm, issuer cryptobyte.String
	var versioned bool
	rest := cryptobyte.String(before)
	if !rest.ReadOptionalASN1(&version, &versioned, cryptobyteasn1.Tag(0).Constructed().ContextSpecific()) ||
		!rest.ReadASN1Element(&serial, cryptobyteasn1.INTEGER) || !rest.ReadASN1Element(&algorithm, cryptobyteasn1.SEQUENCE) {
		return nil, errors.New("ctlog: the precertificate's TBSCertificate is malformed")
	}
	head := before[:len(before)-len(rest)]
	if !rest.ReadASN1Element(&issuer, cryptobyteasn1.SEQUENCE) || !bytes.Equal(issuer, signer.RawSubject) {
		return nil, errors.New("ctlog: the precertificate's issuer is not the precertificate signing certificate")
	}
	return slices.Concat(head, signer.RawIssuer, []byte(rest)), nil
}

// withKeyIDOf replaces the content of the authority key identifier by that of the
// signer's own, in the bytes of an extension list.
func withKeyIDOf(extensions []byte, signer *x509.Certificate) ([]byte, error) {
	var want []byte
	for _, e := range signer.Extensions {
		if e.Id.Equal(oidAuthorityKeyID) {
			want = e.Value
		}
	}
	out, found, err := tbs.Replace(extensions, oidAuthorityKeyID, func(rest cryptobyte.String) ([]byte, error) {
		var value cryptobyte.String
		if !rest.ReadASN1(&value, cryptobyteasn1.OCTET_STRING) || !rest.Empty() { // RFC 5280 §4.2.1.1: never critical
			return nil, errors.New("ctlog: the precertificate's authority key identifier is malformed")
		}
		var b cryptobyte.Builder
		b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidAuthorityKeyID)
			b.AddASN1OctetString(want)
		})
		return b.Bytes()
	})
	if err != nil {
		return nil, err
	}
	if found > 1 || (found == 1) != (want != nil) {
		return nil, errors.New("ctlog: the precertificate and its signing certificate need one authority key identifier each, or neither (RFC 6962 §3.2)")
	}
	return out, nil
}

// withoutPoison cuts the one poison extension out of the bytes of an extension list.
func withoutPoison(extensions []byte) ([]byte, error) {
	kept, poisons, err := tbs.Replace(extensions, OIDPoison, func(rest cryptobyte.String) ([]byte, error) {
		var critical bool
		var value cryptobyte.String
		if !rest.ReadASN1Boolean(&critical) || !critical ||
			!rest.ReadASN1(&value, cryptobyteasn1.OCTET_STRING) || string(value) != "\x05\x00" || !rest.Empty() {
			return nil, errors.New("ctlog: the poison extension is not critical with a NULL value")
		}
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	if poisons != 1 {
		return nil, fmt.Errorf("ctlog: the certificate has %d poison extensions, a precertificate has one", poisons)
	}
	return kept, nil
}
