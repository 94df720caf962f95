package client

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// tbsWithoutSCTs is the certificate's TBSCertificate without the SCT list and
// with every other byte as it was: what a log has signed (RFC 6962 §3.2).
func tbsWithoutSCTs(cert *x509.Certificate) ([]byte, error) {
	errMalformed := errors.New("the certificate's TBSCertificate is malformed")
	tag := cbasn1.Tag(3).Constructed().ContextSpecific() // RFC 5280 §4.1: extensions [3]
	input, fields := cryptobyte.String(cert.RawTBSCertificate), cryptobyte.String(nil)
	if !input.ReadASN1(&fields, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errMalformed
	}
	var before, kept []byte
	for !fields.Empty() && !fields.PeekASN1Tag(tag) {
		var field cryptobyte.String
		var of cbasn1.Tag
		if !fields.ReadAnyASN1Element(&field, &of) {
			return nil, errMalformed
		}
		before = append(before, field...)
	}
	var explicit, extensions cryptobyte.String
	if !fields.ReadASN1(&explicit, tag) || !fields.Empty() || !explicit.ReadASN1(&extensions, cbasn1.SEQUENCE) || !explicit.Empty() {
		return nil, errMalformed
	}
	for !extensions.Empty() {
		var element, inside cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !extensions.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return nil, errMalformed
		}
		whole := element
		if !whole.ReadASN1(&inside, cbasn1.SEQUENCE) || !inside.ReadASN1ObjectIdentifier(&oid) {
			return nil, errMalformed
		}
		if !oid.Equal(ctlog.OIDSCTList) {
			kept = append(kept, element...)
		}
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(cert.RawTBSCertificate)))
	b.AddASN1(cbasn1.SEQUENCE, func(tbs *cryptobyte.Builder) {
		tbs.AddBytes(before)
		if len(kept) == 0 { // RFC 5280 §4.1: an empty list isn't written
			return
		}
		tbs.AddASN1(tag, func(explicit *cryptobyte.Builder) {
			explicit.AddASN1(cbasn1.SEQUENCE, func(list *cryptobyte.Builder) { list.AddBytes(kept) })
		})
	})
	return b.Bytes()
}

// EmbeddedSCTs reads the SCTs in a certificate. None is (nil, nil).
func EmbeddedSCTs(cert *x509.Certificate) ([]ctlog.SCT, error) {
	var found []byte
	for _, e := range cert.Extensions {
		if !e.Id.Equal(ctlog.OIDSCTList) {
			continue
		}
		if found != nil {
			return nil, errors.New("the certificate has two SCT lists")
		}
		list, input := cryptobyte.String(nil), cryptobyte.String(e.Value)
		if !input.ReadASN1(&list, cbasn1.OCTET_STRING) || !input.Empty() || len(list) == 0 {
			return nil, errors.New("the SCT list is not a DER OCTET STRING")
		}
		found = list
	}
	if found == nil {
		return nil, nil
	}
	return ctlog.ParseList(found)
}
