package revoke

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

var (
	oidInvalidityDate    = asn1.ObjectIdentifier{2, 5, 29, 24} // RFC 5280 §5.3.2
	oidExpiredCertsOnCRL = asn1.ObjectIdentifier{2, 5, 29, 60} // X.509 §9.5.2.8
)

// noEnd is the nextUpdate of a final list: no other follows (as RFC 5280 §4.1.2.5 has
// it for certificates).
var noEnd = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Signing is an authority that can sign lists.
type Signing struct {
	Certificate *x509.Certificate
	Key         kms.Signer
	// Last says that the key may be gone before the next list, which then never comes.
	Last bool
}

// ID is how authorities are called here: by the subject key identifiers of their
// issuing certificates.
func ID(issuer *x509.Certificate) string { return hex.EncodeToString(issuer.SubjectKeyId) }

// CheckIssuer is nil where an issuing certificate lets its key sign lists.
func CheckIssuer(issuer *x509.Certificate) error {
	if issuer.KeyUsage&x509.KeyUsageCRLSign == 0 || len(issuer.SubjectKeyId) == 0 {
		return errors.New("its issuing certificate doesn't let the key sign lists of revoked certificates (key usage cRLSign, and a subject key identifier): revocation needs an issuing certificate of `mayfly ca`, or no revocation.directory")
	}
	return nil
}

// sign makes the complete list of an authority. Its number is the size of the log that
// it is of. Listed means invalid, whatever a timestamp says: so revocationDate is where
// the certificate's life began, and invalidityDate lies before it; when it was decided
// is in the statement.
func (s Signing) sign(ctx context.Context, entries []entry, number uint64, now time.Time) (*x509.RevocationList, error) {
	since, err := generalized(s.Certificate.NotBefore)
	if err != nil {
		return nil, err
	}
	list := &x509.RevocationList{
		Number: new(big.Int).SetUint64(number), ThisUpdate: now, NextUpdate: now.Add(validity),
		RevokedCertificateEntries: make([]x509.RevocationListEntry, len(entries)),
		ExtraExtensions:           []pkix.Extension{{Id: oidExpiredCertsOnCRL, Value: since}},
	}
	if s.Last {
		list.NextUpdate = noEnd
	}
	for i, e := range entries {
		begun := time.Unix(e.notBefore, 0).UTC()
		invalid, err := generalized(begun.Add(-time.Second))
		if err != nil {
			return nil, err
		}
		list.RevokedCertificateEntries[i] = x509.RevocationListEntry{
			SerialNumber: e.serial.number(), RevocationTime: begun, ReasonCode: int(e.reason), // of which 0 is left out
			ExtraExtensions: []pkix.Extension{{Id: oidInvalidityDate, Value: invalid}},
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.Certificate, cacert.Using(ctx, s.Key))
	if err != nil {
		return nil, fmt.Errorf("signing the list of %s: %w", s.Certificate.Subject, err)
	}
	made, err := x509.ParseRevocationList(der)
	if err == nil {
		err = made.CheckSignatureFrom(s.Certificate)
	}
	if err != nil || len(made.RevokedCertificateEntries) != len(entries) {
		return nil, errors.Join(fmt.Errorf("the list of %s that was just signed doesn't hold", s.Certificate.Subject), err)
	}
	return made, nil
}

// generalized is a time as both extensions want it, in DER.
func generalized(t time.Time) ([]byte, error) { return asn1.MarshalWithParams(t.UTC(), "generalized") }
