package ca

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
)

// parsedTBS is a TBSCertificate as the lint reads it, beside what it should say.
// It is parsed from the bytes that will be signed and shares nothing with the
// code that wrote them.
type parsedTBS struct {
	authority *authority.Authority
	leaf      *leaf
	lifetime  time.Duration

	version                          int
	serial                           big.Int
	serialOctets                     int
	algorithm, issuer, subject, spki cryptobyte.String
	notBefore, notAfter              time.Time
	extensions                       []parsedExtension
}

// parsedExtension is one of its extensions.
type parsedExtension struct {
	id, value cryptobyte.String
	critical  bool
}

// rules is the profile, one statement a line. A statement that doesn't hold
// stops the issuance before any key is used.
var rules = []struct {
	statement string
	holds     func(*parsedTBS) bool
}{
	{"the version is 3", func(r *parsedTBS) bool { return r.version == 2 }},
	{"the serial number is positive, at most 20 octets (RFC 5280 §4.1.2.2) and random", func(r *parsedTBS) bool {
		// 159 random bits have fewer than 96 once in 2^63 times: rather the source is broken.
		return r.serial.Sign() > 0 && r.serialOctets <= 20 && r.serial.BitLen() > 96 && r.serial.Cmp(r.leaf.serial) == 0
	}},
	{"the signature algorithm is the authority's", func(r *parsedTBS) bool { return bytes.Equal(r.algorithm, r.authority.SignatureAlgorithm) }},
	{"the issuer is the authority's subject, byte for byte (RFC 5280 §4.1.2.4)", func(r *parsedTBS) bool { return bytes.Equal(r.issuer, r.authority.Certificate.RawSubject) }},
	{"the subject is empty", func(r *parsedTBS) bool { return string(r.subject) == "\x30\x00" }},
	{"the validity is the configured lifetime, both ends included (RFC 5280 §4.1.2.5)", func(r *parsedTBS) bool {
		return r.notAfter.Sub(r.notBefore) == r.lifetime-time.Second && r.lifetime >= MinLifetime && r.lifetime <= MaxLifetime
	}},
	{"the validity begins when the certificate was to begin", func(r *parsedTBS) bool { return r.notBefore.Equal(r.leaf.notBefore) }},
	{"the validity lies within that of every issuer", func(r *parsedTBS) bool { return r.authority.Covers(r.notBefore, r.notAfter) == nil }},
	{"the public key is the proven one", func(r *parsedTBS) bool { return bytes.Equal(r.spki, r.leaf.spki) }},
	{"no extension occurs twice (RFC 5280 §4.2)", (*parsedTBS).noDuplicates},
	{"every extension belongs to the profile", (*parsedTBS).noUnknownExtensions},
	{"the key usage is digitalSignature, critical", func(r *parsedTBS) bool {
		return r.has(oidKeyUsage, true, "\x03\x02\x07\x80")
	}},
	{"the extended key usage is codeSigning", func(r *parsedTBS) bool {
		return r.has(oidExtKeyUsage, false, "\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x03")
	}},
	{"the subject key identifier has 160 bits (RFC 7093 §2)", func(r *parsedTBS) bool {
		e := r.find(oidSubjectKey)
		return e != nil && !e.critical && len(e.value) == 22 && e.value[0] == 0x04 && e.value[1] == 20
	}},
	{"the authority key identifier is the issuer's subject key identifier (RFC 5280 §4.2.1.1)", (*parsedTBS).namesIssuerKey},
	{"the subject alternative name is critical and one well-formed identity (RFC 5280 §4.2.1.6)", (*parsedTBS).wellNamed},
	{"the identity's extensions are there, not critical, and in their encodings", (*parsedTBS).wellExtended},
	{"the poison is there, critical and NULL (RFC 6962 §3.1)", func(r *parsedTBS) bool { return r.has(oidPoison, true, "\x05\x00") }},
}

// lint reads a precertificate's TBSCertificate back and holds it against the
// profile. Its error is ours: nothing that a client sends should reach it.
func lint(tbs []byte, l *leaf, a *authority.Authority, lifetime time.Duration) error {
	r := parsedTBS{authority: a, leaf: l, lifetime: lifetime, extensions: make([]parsedExtension, 0, 16)}
	if !r.read(tbs) {
		return fmt.Errorf("ca: lint: the TBSCertificate isn't well-formed DER")
	}
	for i := range rules {
		if !rules[i].holds(&r) {
			return fmt.Errorf("ca: lint: not so: %s", rules[i].statement)
		}
	}
	return nil
}

// read parses RFC 5280 §4.1.
func (r *parsedTBS) read(tbs []byte) bool {
	input := cryptobyte.String(tbs)
	var fields, version, serial, validity, explicit, list cryptobyte.String
	if !input.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !input.Empty() ||
		!fields.ReadASN1(&version, cryptobyteasn1.Tag(0).Constructed().ContextSpecific()) ||
		!version.ReadASN1Integer(&r.version) || !version.Empty() ||
		!fields.ReadASN1Element(&serial, cryptobyteasn1.INTEGER) {
		return false
	}
	r.serialOctets = len(serial) - 2
	return serial.ReadASN1Integer(&r.serial) &&
		fields.ReadASN1Element(&r.algorithm, cryptobyteasn1.SEQUENCE) &&
		fields.ReadASN1Element(&r.issuer, cryptobyteasn1.SEQUENCE) &&
		fields.ReadASN1(&validity, cryptobyteasn1.SEQUENCE) &&
		readTime(&validity, &r.notBefore) && readTime(&validity, &r.notAfter) && validity.Empty() &&
		fields.ReadASN1Element(&r.subject, cryptobyteasn1.SEQUENCE) &&
		fields.ReadASN1Element(&r.spki, cryptobyteasn1.SEQUENCE) &&
		fields.ReadASN1(&explicit, cryptobyteasn1.Tag(3).Constructed().ContextSpecific()) && fields.Empty() &&
		explicit.ReadASN1(&list, cryptobyteasn1.SEQUENCE) && explicit.Empty() &&
		r.readExtensions(list)
}

func (r *parsedTBS) readExtensions(list cryptobyte.String) bool {
	for !list.Empty() {
		var e parsedExtension
		var fields cryptobyte.String
		if !list.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) || !fields.ReadASN1(&e.id, cryptobyteasn1.OBJECT_IDENTIFIER) {
			return false
		}
		// DEFAULT FALSE is never written in DER (X.690 §11.5).
		if fields.PeekASN1Tag(cryptobyteasn1.BOOLEAN) && (!fields.ReadASN1Boolean(&e.critical) || !e.critical) {
			return false
		}
		if !fields.ReadASN1(&e.value, cryptobyteasn1.OCTET_STRING) || !fields.Empty() {
			return false
		}
		r.extensions = append(r.extensions, e)
	}
	return true
}

// readTime reads a Time, which is a UTCTime exactly to 2049 (RFC 5280 §4.1.2.5).
func readTime(s *cryptobyte.String, t *time.Time) bool {
	if s.PeekASN1Tag(cryptobyteasn1.UTCTime) {
		return s.ReadASN1UTCTime(t)
	}
	return s.ReadASN1GeneralizedTime(t) && t.Year() >= 2050
}

func (r *parsedTBS) find(id []byte) *parsedExtension {
	for i := range r.extensions {
		if bytes.Equal(r.extensions[i].id, id) {
			return &r.extensions[i]
		}
	}
	return nil
}

func (r *parsedTBS) has(id []byte, critical bool, value string) bool {
	e := r.find(id)
	return e != nil && e.critical == critical && string(e.value) == value
}

func (r *parsedTBS) noDuplicates() bool {
	for i := range r.extensions {
		if r.find(r.extensions[i].id) != &r.extensions[i] {
			return false
		}
	}
	return true
}

// sigstoreArc is 1.3.6.1.4.1.57264.1, the parent of the identity's extensions.
var sigstoreArc = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xbf, 0x30, 0x01}

// sigstore gives the last arc of one of the identity's extensions.
func (e *parsedExtension) sigstore() (arc byte, ok bool) {
	if len(e.id) != len(sigstoreArc)+1 || !bytes.HasPrefix(e.id, sigstoreArc) {
		return 0, false
	}
	return e.id[len(sigstoreArc)], true
}

func (r *parsedTBS) noUnknownExtensions() bool {
	for i := range r.extensions {
		e := &r.extensions[i]
		switch string(e.id) {
		case string(oidKeyUsage), string(oidExtKeyUsage), string(oidSubjectKey), string(oidAuthority), string(oidSAN), string(oidPoison):
		default:
			if arc, ok := e.sigstore(); !ok || arc < 1 || arc > 24 || arc == 7 { // 7 is a name's type
				return false
			}
		}
	}
	return true
}

func (r *parsedTBS) namesIssuerKey() bool {
	e := r.find(oidAuthority)
	if e == nil || e.critical {
		return false
	}
	value := e.value
	var fields, id cryptobyte.String
	return value.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) && value.Empty() &&
		fields.ReadASN1(&id, cryptobyteasn1.Tag(0).ContextSpecific()) && fields.Empty() &&
		bytes.Equal(id, r.authority.Certificate.SubjectKeyId)
}

// wellNamed wants exactly one GeneralName, the principal's.
func (r *parsedTBS) wellNamed() bool {
	e := r.find(oidSAN)
	if e == nil || !e.critical {
		return false
	}
	value := e.value
	var names, name cryptobyte.String
	var tag cryptobyteasn1.Tag
	if !value.ReadASN1(&names, cryptobyteasn1.SEQUENCE) || !value.Empty() || !names.ReadAnyASN1(&name, &tag) || !names.Empty() {
		return false
	}
	san := identity.SAN{Value: string(name)}
	switch tag {
	case cryptobyteasn1.Tag(1).ContextSpecific(): // rfc822Name
		san.Kind = identity.Email
	case cryptobyteasn1.Tag(6).ContextSpecific(): // uniformResourceIdentifier
		san.Kind = identity.URI
	case cryptobyteasn1.Tag(0).ContextSpecific().Constructed(): // otherName
		var id asn1.ObjectIdentifier
		var explicit, text cryptobyte.String
		if !name.ReadASN1ObjectIdentifier(&id) || !id.Equal(extension.OtherNameOID) ||
			!name.ReadASN1(&explicit, cryptobyteasn1.Tag(0).ContextSpecific().Constructed()) || !name.Empty() ||
			!explicit.ReadASN1(&text, cryptobyteasn1.UTF8String) || !explicit.Empty() {
			return false
		}
		san = identity.SAN{Kind: identity.Username, Value: string(text)}
	}
	return san == r.leaf.san && checkSAN(san) == nil
}

// wellExtended wants issuer (1 and 8) and token subject (24), and every value
// present and readable: 1 to 6 raw, the others one DER UTF8String.
func (r *parsedTBS) wellExtended() bool {
	var seen [25]bool
	for i := range r.extensions {
		e := &r.extensions[i]
		arc, ok := e.sigstore()
		if !ok {
			continue
		}
		text := e.value
		if e.critical || int(arc) >= len(seen) ||
			arc > 6 && (!e.value.ReadASN1(&text, cryptobyteasn1.UTF8String) || !e.value.Empty()) {
			return false
		}
		if len(text) == 0 || !utf8.Valid(text) {
			return false
		}
		seen[arc] = true
	}
	return seen[1] && seen[8] && seen[24]
}
