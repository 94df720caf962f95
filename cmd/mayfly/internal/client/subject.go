package client

import (
	"crypto/x509"
	"encoding/asn1"

	"github.com/mayfly-ca/mayfly/identity/extension"
)

// oidSAN is the subjectAltName extension (RFC 5280 §4.2.1.6).
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// checkSubject compares what the certificate says of the identity with the
// token that was sent. It knows no issuer's rule, so of a URI it can't tell how
// it was made; but the subject and the issuer that stand beside it are the
// token's. A mail address is the token's own, whichever issuer is recorded: a
// broker's is another than the token's. CAs that write no subject pass.
func checkSubject(leaf *x509.Certificate, token *Token) error {
	const report = "report it to the operator of the CA"
	set, err := extension.Parse(leaf.Extensions)
	if err != nil {
		return problem(Unverified, report, "the certificate's identity extensions are malformed").because(err)
	}
	if set.TokenSubject != "" && set.TokenSubject != token.Subject {
		return problem(Unverified, report, "the certificate is for another subject than the token's")
	}
	names := extension.SANs(leaf)
	if len(names) != 1 || names[0].Value == "" {
		return problem(Unverified, report, "the certificate does not name one identity")
	}
	switch name := names[0].Value; names[0].Type {
	case "email":
		if name != token.Challenge() {
			return problem(Unverified, report, "the certificate is for another mail address than the token's")
		}
		return nil
	case "username":
		if !hasSubject(name, token.Subject) {
			return problem(Unverified, report, "the certificate is for another username than the token's")
		}
	case "uri":
	default:
		return problem(Unverified, report, "the certificate does not name one identity")
	}
	if set.Issuer != "" && set.Issuer != token.Issuer {
		return problem(Unverified, report, "the certificate records another issuer than the token's")
	}
	return nil
}

// hasSubject reports whether username is `subject!domain`.
func hasSubject(username, subject string) bool {
	return subject != "" && len(username) > len(subject)+1 && username[:len(subject)+1] == subject+"!"
}
