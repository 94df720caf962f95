package client

import (
	"crypto/x509"
	"encoding/asn1"

	"github.com/mayfly-ca/mayfly/identity/extension"
)

// oidSAN is the subjectAltName extension (RFC 5280 §4.2.1.6).
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// checkSubject compares the token's subject, which the CA writes into every
// certificate, with the token that was sent. CAs that write no subject pass.
func checkSubject(leaf *x509.Certificate, token *Token) error {
	set, err := extension.Parse(leaf.Extensions)
	if err != nil {
		return problem(Unverified, "report it to the operator of the CA", "the certificate's identity extensions are malformed").because(err)
	}
	if set.TokenSubject != "" && set.TokenSubject != token.Subject {
		return problem(Unverified, "report it to the operator of the CA", "the certificate is for another subject than the token's")
	}
	return nil
}
