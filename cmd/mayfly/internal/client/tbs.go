package client

import (
	"crypto/x509"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// tbsWithoutSCTs is the certificate's TBSCertificate without the SCT list and
// with every other byte as it was: what a log has signed (RFC 6962 §3.2).
func tbsWithoutSCTs(cert *x509.Certificate) ([]byte, error) {
	before, extensions, err := tbs.Split(cert.RawTBSCertificate)
	if err != nil {
		return nil, err
	}
	kept, _, err := tbs.Replace(extensions, ctlog.OIDSCTList, func(cryptobyte.String) ([]byte, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return tbs.Join(before, kept), nil
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
