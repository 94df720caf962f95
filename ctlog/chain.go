package ctlog

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// OIDPoison marks a precertificate (RFC 6962 §3.1); critical, its value is NULL.
var OIDPoison = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}

// OIDSCTList is the extension that carries the SCTs in a certificate (RFC 6962 §3.3).
var OIDSCTList = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// NewChain derives the values that a log signs from a precertificate and its
// issuers (direct issuer first). It parses the direct issuer, but verifies no
// signature.
func NewChain(precertificate []byte, issuers [][]byte) (Chain, error) {
	if len(issuers) == 0 {
		return Chain{}, errors.New("ctlog: a chain needs the certificate that signed the precertificate")
	}
	issuer, err := x509.ParseCertificate(issuers[0])
	if err != nil {
		return Chain{}, fmt.Errorf("ctlog: parsing the direct issuer: %w", err)
	}
	tbs, err := PrecertificateTBS(precertificate)
	if err != nil {
		return Chain{}, err
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
// kept (RFC 6962 §3.2). A certificate without exactly one critical poison is an
// error.
func PrecertificateTBS(precertificate []byte) ([]byte, error) {
	var (
		certificate, tbs cryptobyte.String
		input            = cryptobyte.String(precertificate)
	)
	if !input.ReadASN1(&certificate, cryptobyteasn1.SEQUENCE) || !input.Empty() ||
		!certificate.ReadASN1(&tbs, cryptobyteasn1.SEQUENCE) {
		return nil, errors.New("ctlog: the precertificate is not a DER certificate")
	}
	extensionsTag := cryptobyteasn1.Tag(3).Constructed().ContextSpecific() // RFC 5280 §4.1: extensions [3]
	var before []byte
	for !tbs.Empty() && !tbs.PeekASN1Tag(extensionsTag) {
		var field cryptobyte.String
		var tag cryptobyteasn1.Tag
		if !tbs.ReadAnyASN1Element(&field, &tag) {
			return nil, errors.New("ctlog: the precertificate's TBSCertificate is malformed")
		}
		before = append(before, field...)
	}
	var explicit, extensions cryptobyte.String
	if !tbs.ReadASN1(&explicit, extensionsTag) || !tbs.Empty() ||
		!explicit.ReadASN1(&extensions, cryptobyteasn1.SEQUENCE) || !explicit.Empty() {
		return nil, errors.New("ctlog: the precertificate has no extensions")
	}
	kept, err := withoutPoison(extensions)
	if err != nil {
		return nil, err
	}
	return buildTBS(before, kept, extensionsTag)
}

func buildTBS(before, extensions []byte, tag cryptobyteasn1.Tag) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(before)+len(extensions)+16))
	b.AddASN1(cryptobyteasn1.SEQUENCE, func(tbs *cryptobyte.Builder) {
		tbs.AddBytes(before)
		if len(extensions) == 0 { // RFC 5280 §4.1: SIZE (1..MAX), so none is left out
			return
		}
		tbs.AddASN1(tag, func(explicit *cryptobyte.Builder) {
			explicit.AddASN1(cryptobyteasn1.SEQUENCE, func(list *cryptobyte.Builder) { list.AddBytes(extensions) })
		})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("ctlog: encoding the TBSCertificate: %w", err)
	}
	return out, nil
}

// withoutPoison cuts the one poison extension out of the bytes of an extension list.
func withoutPoison(extensions cryptobyte.String) ([]byte, error) {
	kept := make([]byte, 0, len(extensions))
	poisons := 0
	for !extensions.Empty() {
		var element, fields, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if !extensions.ReadASN1Element(&element, cryptobyteasn1.SEQUENCE) {
			return nil, errors.New("ctlog: the precertificate's extensions are malformed")
		}
		whole := element
		if !whole.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !fields.ReadASN1ObjectIdentifier(&oid) {
			return nil, errors.New("ctlog: an extension of the precertificate is malformed")
		}
		if !oid.Equal(OIDPoison) {
			kept = append(kept, element...)
			continue
		}
		if !fields.ReadASN1Boolean(&critical) || !critical ||
			!fields.ReadASN1(&value, cryptobyteasn1.OCTET_STRING) || string(value) != "\x05\x00" || !fields.Empty() {
			return nil, errors.New("ctlog: the poison extension is not critical with a NULL value")
		}
		poisons++
	}
	if poisons != 1 {
		return nil, fmt.Errorf("ctlog: the certificate has %d poison extensions, a precertificate has one", poisons)
	}
	return kept, nil
}
