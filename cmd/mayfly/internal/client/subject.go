package client

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/identity/extension"
)

// oidSAN is the subjectAltName extension (RFC 5280 §4.2.1.6).
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// Tags of a GeneralName (RFC 5280 §4.2.1.6).
var (
	tagOtherName = cbasn1.Tag(0).ContextSpecific().Constructed()
	tagEmail     = cbasn1.Tag(1).ContextSpecific()
	tagURI       = cbasn1.Tag(6).ContextSpecific()
)

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
	tag, name, ok := onlyName(leaf)
	switch {
	case !ok:
		return problem(Unverified, report, "the certificate does not name one identity")
	case tag == tagEmail:
		if name != token.Challenge() {
			return problem(Unverified, report, "the certificate is for another mail address than the token's")
		}
		return nil
	case tag == tagOtherName && !hasSubject(name, token.Subject):
		return problem(Unverified, report, "the certificate is for another username than the token's")
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

// onlyName is the one mail address, URI or username of the SAN; false for any
// other kind of name, for several and for none.
func onlyName(leaf *x509.Certificate) (tag cbasn1.Tag, name string, ok bool) {
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSAN) })
	if i < 0 {
		return 0, "", false
	}
	input := cryptobyte.String(leaf.Extensions[i].Value)
	var names, value cryptobyte.String
	if !input.ReadASN1(&names, cbasn1.SEQUENCE) || !input.Empty() || !names.ReadAnyASN1(&value, &tag) || !names.Empty() {
		return 0, "", false
	}
	switch tag {
	case tagEmail, tagURI:
		return tag, string(value), len(value) > 0
	case tagOtherName:
		var id asn1.ObjectIdentifier
		var explicit, text cryptobyte.String
		ok = value.ReadASN1ObjectIdentifier(&id) && id.Equal(extension.OtherNameOID) &&
			value.ReadASN1(&explicit, tagOtherName) && value.Empty() &&
			explicit.ReadASN1(&text, cbasn1.UTF8String) && explicit.Empty()
		return tag, string(text), ok
	}
	return 0, "", false
}
