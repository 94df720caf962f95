package ca

import (
	"cmp"
	"crypto/x509/pkix"
	encodingasn1 "encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// profile is what the certificate for who and key will say.
func (i *Issuer) profile(a *authority.Authority, who identity.Principal, key proof.Key) (*leaf, error) {
	l, err := i.newLeaf(a, key.SPKI(), who.SAN(), i.lifetimeFor(who))
	if err != nil {
		return nil, err
	}
	if err := a.Covers(l.notBefore, l.notAfter); err != nil {
		return nil, err
	}
	if err := checkSAN(l.san); err != nil {
		return nil, err
	}
	if l.extensions, err = who.Extensions().Extensions(); err != nil {
		return nil, fmt.Errorf("ca: encoding the identity's extensions: %w", err)
	}
	return l, nil
}

// newLeaf is a leaf that a issues now, with a serial number of its own.
func (i *Issuer) newLeaf(a *authority.Authority, spki []byte, san identity.SAN, lifetime time.Duration) (*leaf, error) {
	l := &leaf{spki: spki, san: san, lifetime: lifetime}
	l.notBefore, l.notAfter = a.LeafValidity(i.now(), authority.Life{Lifetime: lifetime, Backdate: i.life.Backdate})
	var err error
	if l.keyID, err = cacert.KeyID(spki); err != nil {
		return nil, err
	}
	if l.serial, err = cacert.NewSerial(i.random); err != nil {
		return nil, err
	}
	return l, nil
}

// lifetimeFor is what the issuer's policy chose for who, and the configured
// lifetime where it chose none; never longer than the issuer's bound, and never
// outside of ours.
func (i *Issuer) lifetimeFor(who identity.Principal) time.Duration {
	chosen := cmp.Or(who.Lifetime(), i.life.Lifetime)
	if most := who.MaxLifetime(); most > 0 {
		chosen = min(chosen, most)
	}
	return min(max(chosen, MinLifetime), MaxLifetime)
}

// checkSAN refuses a name that a certificate can't carry so that all verifiers
// read it alike. identity has refused these already; this is what stands
// between a mistake there and a signature.
func checkSAN(san identity.SAN) error {
	what := san.Kind.String()
	switch {
	case san.Value == "":
		return unfit(what, "is empty")
	case !utf8.ValidString(san.Value):
		return unfit(what, "isn't UTF-8")
	case strings.ContainsFunc(san.Value, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return unfit(what, "has control characters")
	case san.Kind != identity.Username && strings.ContainsFunc(san.Value, func(r rune) bool { return r >= utf8.RuneSelf }):
		return unfit(what, "has characters outside ASCII") // RFC 5280 §4.2.1.6: the others are IA5Strings
	}
	switch san.Kind {
	case identity.Email:
		if local, domain, ok := strings.Cut(san.Value, "@"); !ok || local == "" || domain == "" || strings.Contains(domain, "@") {
			return unfit(what, "isn't one mailbox of the form local@domain")
		}
	case identity.URI:
		if u, err := url.Parse(san.Value); err != nil || u.Scheme == "" || !parseableHost(u.Host) {
			return unfit(what, "isn't an absolute URI with a well-formed host")
		}
	case identity.Username: // a UTF8String holds what is left
	default:
		return fmt.Errorf("ca: SAN of unknown kind %d", san.Kind)
	}
	return nil
}

func unfit(kind, why string) error {
	return fault.New(fault.ClaimInvalid, "the identity's %s %s, so no certificate can carry it", kind, why).With("claim", kind)
}

// parseableHost refuses what crypto/x509 refuses to parse in a URI, so that it is
// found before a signature and not by the check after it.
func parseableHost(host string) bool {
	return host == "" || host[0] != '.' && host[len(host)-1] != '.' && !strings.Contains(host, "..") &&
		!strings.ContainsFunc(host, func(r rune) bool { return r <= 0x20 || r >= 0x7f })
}

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
	tagExtensions = asn1.Tag(3).ContextSpecific().Constructed()
	tagOtherName  = asn1.Tag(0).ContextSpecific().Constructed()
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

// encode is the TBSCertificate with the poison, and without it.
func (l *leaf) encode(a *authority.Authority) (poisoned, plain []byte, err error) {
	if poisoned, err = l.tbs(a, poisonDER); err != nil {
		return nil, nil, err
	}
	plain, err = replaceExtension(poisoned, ctlog.OIDPoison, nil)
	return poisoned, plain, err
}

// tbs is the TBSCertificate that a issues.
func (l *leaf) tbs(a *authority.Authority, last []byte) ([]byte, error) {
	return l.tbsOf(a.SignatureAlgorithm, a.Certificate.RawSubject, a.KeyID, last)
}

// tbsOf writes the TBSCertificate (RFC 5280 §4.1) of an issuer by its name and the
// extension that names its key. last, one encoded extension or nothing, comes after all
// others: the poison of a precertificate.
func (l *leaf) tbsOf(algorithm, issuer, keyID, last []byte) ([]byte, error) {
	san, err := EncodeSAN(l.san)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 1536), versionDER...)
	b = appendSerial(b, l.serial)
	b = append(append(b, algorithm...), issuer...)
	at := len(b)
	b = appendTime(appendTime(b, l.notBefore), l.notAfter)
	b = tbs.Wrap(b, at, asn1.SEQUENCE)
	b = append(b, emptyDER...) // the subject: the SAN names the identity
	b = append(b, l.spki...)
	at = len(b)
	b = append(append(b, keyUsageDER...), extKeyUsageDER...)
	b = appendExtension(b, oidSubjectKey, false, tbs.Wrap(slices.Clone(l.keyID), 0, asn1.OCTET_STRING))
	b = append(b, keyID...)
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
		b = tbs.Wrap(tbs.Wrap(b, at, tagOtherName), 0, tagOtherName)
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
