package ca

import (
	"crypto/x509/pkix"
	encodingasn1 "encoding/asn1"
	"errors"
	"math/big"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// leaf is all that a leaf certificate says, beside what its authority and its
// log add. The TBSCertificate is written here, not by x509.CreateCertificate:
// that one verifies each signature it makes, and Issue checks what it signed anyway.
type leaf struct {
	serial              *big.Int
	notBefore, notAfter time.Time // whole seconds, both included
	lifetime            time.Duration
	spki                []byte // DER SubjectPublicKeyInfo, as the client sent it
	keyID               []byte // subjectKeyIdentifier
	san                 identity.SAN
	extensions          []pkix.Extension // extension.Set's
}

// Tags of RFC 5280 §4.1 and §4.2.1.6 (GeneralName is implicitly tagged).
var (
	tagVersion    = asn1.Tag(0).ContextSpecific().Constructed()
	tagExtensions = asn1.Tag(3).ContextSpecific().Constructed()
	tagOtherName  = asn1.Tag(0).ContextSpecific().Constructed()
	tagOtherValue = asn1.Tag(0).ContextSpecific().Constructed()
	tagEmail      = asn1.Tag(1).ContextSpecific()
	tagURI        = asn1.Tag(6).ContextSpecific()
)

// What is the same in every leaf, in DER.
var (
	versionDER = []byte{0xa0, 3, 0x02, 1, 2} // v3
	emptyDER   = []byte{0x30, 0}
	// keyUsage, critical, digitalSignature alone: RFC 5280 §4.2.1.3.
	keyUsageDER = []byte{0x30, 0x0e, 0x06, 3, 0x55, 0x1d, 0x0f, 0x01, 1, 0xff, 0x04, 4, 0x03, 2, 0x07, 0x80}
	// extKeyUsage, id-kp-codeSigning alone: RFC 5280 §4.2.1.12.
	extKeyUsageDER = []byte{0x30, 0x13, 0x06, 3, 0x55, 0x1d, 0x25, 0x04, 0x0c, 0x30, 0x0a, 0x06, 8, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03}
	// The poison, critical, NULL: RFC 6962 §3.1.
	poisonDER = []byte{0x30, 0x13, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x03, 0x01, 1, 0xff, 0x04, 2, 0x05, 0x00}
)

// Contents of object identifiers, in DER.
var (
	oidKeyUsage    = []byte{0x55, 0x1d, 0x0f}
	oidExtKeyUsage = []byte{0x55, 0x1d, 0x25}
	oidSubjectKey  = []byte{0x55, 0x1d, 0x0e}
	oidAuthority   = []byte{0x55, 0x1d, 0x23}
	oidSAN         = []byte{0x55, 0x1d, 0x11}
	oidPoison      = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x03} // RFC 6962 §3.1
	oidSCTList     = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x02} // RFC 6962 §3.3
)

// tbs writes the TBSCertificate (RFC 5280 §4.1). last, one encoded extension or
// nothing, comes after all others: the poison of a precertificate.
func (l *leaf) tbs(a *authority.Authority, last []byte) ([]byte, error) {
	san, err := EncodeSAN(l.san)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 1536), versionDER...)
	b = appendSerial(b, l.serial)
	b = append(b, a.SignatureAlgorithm...)
	b = append(b, a.Certificate.RawSubject...)
	at := len(b)
	b = appendTime(appendTime(b, l.notBefore), l.notAfter)
	b = tbs.Wrap(b, at, asn1.SEQUENCE)
	b = append(b, emptyDER...) // the subject: the SAN names the identity
	b = append(b, l.spki...)
	at = len(b)
	b = append(append(b, keyUsageDER...), extKeyUsageDER...)
	b = appendExtension(b, oidSubjectKey, false, tbs.Wrap(slices.Clone(l.keyID), 0, asn1.OCTET_STRING))
	b = append(b, a.KeyID...)
	b = appendExtension(b, oidSAN, true, san) // critical: the subject is empty (RFC 5280 §4.2.1.6)
	var id [16]byte
	for _, e := range l.extensions {
		b = appendExtension(b, appendOID(id[:0], e.Id), false, e.Value)
	}
	b = append(b, last...)
	b = tbs.Wrap(tbs.Wrap(b, at, asn1.SEQUENCE), at, tagExtensions)
	return tbs.Wrap(b, 0, asn1.SEQUENCE), nil
}

// appendSerial writes a positive INTEGER (X.690 §8.3).
func appendSerial(b []byte, serial *big.Int) []byte {
	at := len(b)
	if serial.BitLen()%8 == 0 {
		b = append(b, 0) // the sign
	}
	return tbs.Wrap(append(b, serial.Bytes()...), at, asn1.INTEGER)
}

// appendTime writes a Time: UTCTime to the end of 2049, GeneralizedTime after it
// (RFC 5280 §4.1.2.5).
func appendTime(b []byte, t time.Time) []byte {
	at := len(b)
	if t = t.UTC(); t.Year() < 2050 {
		return tbs.Wrap(t.AppendFormat(b, "060102150405Z"), at, asn1.UTCTime)
	}
	return tbs.Wrap(t.AppendFormat(b, "20060102150405Z"), at, asn1.GeneralizedTime)
}

// appendOID writes the content of an object identifier (X.690 §8.19).
func appendOID(b []byte, id encodingasn1.ObjectIdentifier) []byte {
	for i, n := range id[1:] {
		if i == 0 {
			n += 40 * id[0]
		}
		for shift := (bits.Len(uint(n|1)) - 1) / 7 * 7; shift > 0; shift -= 7 {
			b = append(b, 0x80|byte(n>>shift))
		}
		b = append(b, byte(n&0x7f))
	}
	return b
}

// appendExtension writes one Extension whose OID's content is oid (RFC 5280 §4.1.2.9).
func appendExtension(b, oid []byte, critical bool, value []byte) []byte {
	at := len(b)
	b = tbs.Wrap(append(b, oid...), at, asn1.OBJECT_IDENTIFIER)
	if critical {
		b = append(b, byte(asn1.BOOLEAN), 1, 0xff)
	}
	content := len(b)
	b = tbs.Wrap(append(b, value...), content, asn1.OCTET_STRING)
	return tbs.Wrap(b, at, asn1.SEQUENCE)
}

// EncodeSAN is GeneralNames with the one identity (RFC 5280 §4.2.1.6).
func EncodeSAN(san identity.SAN) ([]byte, error) {
	b := make([]byte, 0, len(san.Value)+32)
	switch san.Kind {
	case identity.Email:
		b = tbs.Wrap(append(b, san.Value...), 0, tagEmail)
	case identity.URI:
		b = tbs.Wrap(append(b, san.Value...), 0, tagURI)
	case identity.Username:
		b = tbs.Wrap(appendOID(b, extension.OtherNameOID), 0, asn1.OBJECT_IDENTIFIER)
		at := len(b)
		b = tbs.Wrap(append(b, san.Value...), at, asn1.UTF8String)
		b = tbs.Wrap(tbs.Wrap(b, at, tagOtherValue), 0, tagOtherName)
	default:
		return nil, errors.New("ca: unknown kind of SAN")
	}
	return tbs.Wrap(b, 0, asn1.SEQUENCE), nil
}

// assemble puts a signature under a TBSCertificate (RFC 5280 §4.1).
func assemble(unsigned, algorithm, sig []byte) []byte {
	b := append(make([]byte, 0, len(unsigned)+len(algorithm)+len(sig)+24), unsigned...)
	b = append(b, algorithm...)
	at := len(b)
	b = append(append(b, 0), sig...) // no unused bits (X.690 §8.6.2)
	return tbs.Wrap(tbs.Wrap(b, at, asn1.BIT_STRING), 0, asn1.SEQUENCE)
}
