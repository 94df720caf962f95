package ca

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
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

// Extensions that are the same in every leaf, in DER.
var (
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
	b := cryptobyte.NewBuilder(make([]byte, 0, 1536))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tagVersion, func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // v3
		b.AddASN1BigInt(l.serial)
		b.AddBytes(a.SignatureAlgorithm)
		b.AddBytes(a.Certificate.RawSubject)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, l.notBefore)
			addTime(b, l.notAfter)
		})
		b.AddASN1(asn1.SEQUENCE, func(*cryptobyte.Builder) {}) // empty subject: the SAN names the identity
		b.AddBytes(l.spki)
		b.AddASN1(tagExtensions, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(keyUsageDER)
				b.AddBytes(extKeyUsageDER)
				addExtension(b, oidSubjectKey, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(l.keyID) })
				b.AddBytes(a.KeyID)
				addExtension(b, oidSAN, true, func(b *cryptobyte.Builder) { addSAN(b, l.san) }) // critical: the subject is empty (RFC 5280 §4.2.1.6)
				for _, e := range l.extensions {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(e.Id)
						b.AddASN1OctetString(e.Value)
					})
				}
				b.AddBytes(last)
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("ca: writing the TBSCertificate: %w", err)
	}
	return der, nil
}

// addTime writes a Time: UTCTime to the end of 2049, GeneralizedTime after it
// (RFC 5280 §4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// addExtension writes one Extension whose OID's content is oid (RFC 5280 §4.1.2.9).
func addExtension(b *cryptobyte.Builder, oid []byte, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(asn1.OCTET_STRING, value)
	})
}

// addSAN writes GeneralNames with the one identity (RFC 5280 §4.2.1.6).
func addSAN(b *cryptobyte.Builder, san identity.SAN) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		value := []byte(san.Value)
		switch san.Kind {
		case identity.Email:
			b.AddASN1(tagEmail, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		case identity.URI:
			b.AddASN1(tagURI, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		case identity.Username:
			b.AddASN1(tagOtherName, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(extension.OtherNameOID)
				b.AddASN1(tagOtherValue, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes(value) })
				})
			})
		default:
			b.SetError(errors.New("ca: unknown kind of SAN"))
		}
	})
}

// assemble puts a signature under a TBSCertificate (RFC 5280 §4.1).
func assemble(tbs, algorithm, sig []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(algorithm)+len(sig)+16))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(algorithm)
		b.AddASN1BitString(sig)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("ca: writing the certificate: %w", err)
	}
	return der, nil
}
