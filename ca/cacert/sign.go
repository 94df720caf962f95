package cacert

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Using is s as a crypto.Signer, for as long as ctx lasts.
func Using(ctx context.Context, s kms.Signer) crypto.Signer { return signing{ctx, s} }

type signing struct {
	ctx context.Context
	kms.Signer
}

// Sign implements crypto.Signer; the KMS has randomness of its own.
func (s signing) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.Signer.Sign(s.ctx, digest, opts)
}

// Certificate is a CA certificate that was signed and checked.
type Certificate struct {
	Chain  []*x509.Certificate // the new certificate first, the root last
	Checks []string            // what held after signing, in words
}

// SignedError is an error after the issuer's key was used: a signature is in the
// world that leads to no file.
type SignedError struct {
	Serial string // hexadecimal
	SHA256 string // of the certificate
	Exists string // what was written, in words
	Err    error
}

func (e *SignedError) Error() string {
	return fmt.Sprintf("%v\nthe issuer's key has signed a certificate, serial %s, SHA-256 %s; %s", e.Err, e.Serial, e.SHA256, e.Exists)
}

func (e *SignedError) Unwrap() error { return e.Err }

// Sign signs the certificate with the issuer's key, which for a root is its own,
// and checks what was signed. An error after the signature is a *[SignedError].
func (d *Draft) Sign(issuer Key) (*Certificate, error) {
	if d.Template.PublicKey == nil {
		return nil, errors.New("cacert: no key to certify was named")
	}
	parent := d.Template
	if len(d.Parent) > 0 {
		parent = d.Parent[0]
	}
	if err := checkIssuer(parent, issuer); err != nil {
		return nil, err
	}
	template := *d.Template
	template.PublicKey, template.RawSubjectPublicKeyInfo = nil, nil
	var err error
	if template.SubjectKeyId, err = KeyID(d.Template.RawSubjectPublicKeyInfo); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, d.Template.PublicKey, issuer)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", issuer.Ref, err)
	}
	made := &Certificate{}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &SignedError{Serial: "unknown", SHA256: chain.Fingerprint(der), Exists: "nothing is written", Err: fmt.Errorf("what was signed can't be read back: %w", err)}
	}
	made.Chain = append([]*x509.Certificate{signed}, d.Parent...)
	if err := made.check(d); err != nil {
		return nil, made.Failed(err, "nothing is written: make it anew, and keep this message with the record")
	}
	return made, nil
}

// CheckIssuer is nil when the key is that of the issuer, to be asked before a key
// that would be certified is made.
func (d *Draft) CheckIssuer(issuer Key) error { return checkIssuer(d.Parent[0], issuer) }

func checkIssuer(parent *x509.Certificate, issuer Key) error {
	if !pubkey.Equal(parent.PublicKey, issuer.Public()) {
		return fmt.Errorf("%s isn't the key of %s: name the key of the issuer's first certificate", issuer.Ref, parent.Subject)
	}
	return nil
}

// Failed is the *[SignedError] of what failed after m was signed.
func (m *Certificate) Failed(err error, exists string) error {
	return &SignedError{Serial: m.Chain[0].SerialNumber.Text(16), SHA256: chain.Fingerprint(m.Chain[0].Raw), Exists: exists, Err: err}
}

// check holds what was signed against what was to be signed and against what
// verifiers want of it.
func (m *Certificate) check(d *Draft) error {
	signed := m.Chain[0]
	issuer := m.Chain[min(1, len(m.Chain)-1)]
	for _, rule := range []struct {
		statement string
		holds     func() error
	}{
		{"the signature verifies under the issuer's key, over " + hashName(signed.SignatureAlgorithm), func() error { return signed.CheckSignatureFrom(issuer) }},
		{"the certificate, read back, says what was to be signed", func() error { return d.corresponds(signed) }},
		{"the chain keeps the profile, from the certificate to the root", func() error { return m.keepsProfile(d) }},
		{d.verifiesFor(), func() error {
			if d.timestamping() {
				return verifyTimestamping(m.Chain, d.Now)
			}
			return verify(m.Chain, chain.Need{Now: d.Now, Below: d.below})
		}},
	} {
		if err := rule.holds(); err != nil {
			return fmt.Errorf("after signing, this doesn't hold: %s: %w", rule.statement, err)
		}
		m.Checks = append(m.Checks, rule.statement)
	}
	return nil
}

// keepsProfile holds the whole chain against the profile.
func (m *Certificate) keepsProfile(d *Draft) error {
	var f faults
	if d.timestamping() {
		for _, fault := range CheckTimestamping(m.Chain, d.Now).Faults() {
			f.add("%s", fault)
		}
		return f.err()
	}
	for _, found := range Check(m.Chain, chain.Need{Now: d.Now, Below: d.below}) {
		if !found.Remark || found.At == 0 { // remarks on an issuer are in the notes
			f.add("%s", found.Text)
		}
	}
	return f.err()
}

// corresponds compares the certificate with what was to be signed.
func (d *Draft) corresponds(signed *x509.Certificate) error {
	t := d.Template
	keyID, err := KeyID(t.RawSubjectPublicKeyInfo)
	if err != nil {
		return err
	}
	authority := keyID
	if len(d.Parent) > 0 {
		authority = d.Parent[0].SubjectKeyId
	} else if len(signed.AuthorityKeyId) == 0 { // RFC 5280 §4.2.1.1: a self-signed certificate may leave it out
		authority = nil
	}
	for _, part := range []struct {
		name string
		same bool
	}{
		{"version", signed.Version == 3},
		{"serial number", signed.SerialNumber.Sign() > 0 && signed.SerialNumber.BitLen() <= 159},
		{"subject", signed.Subject.String() == t.Subject.String()},
		{"validity", signed.NotBefore.Equal(t.NotBefore) && signed.NotAfter.Equal(t.NotAfter)},
		{"public key", bytes.Equal(signed.RawSubjectPublicKeyInfo, t.RawSubjectPublicKeyInfo)},
		{"subject key identifier", bytes.Equal(signed.SubjectKeyId, keyID)},
		{"authority key identifier", bytes.Equal(signed.AuthorityKeyId, authority)},
		{"basic constraints", signed.IsCA == t.IsCA && signed.MaxPathLen == t.MaxPathLen && signed.MaxPathLenZero == t.MaxPathLenZero},
		{"key usage", signed.KeyUsage == t.KeyUsage},
		{"extended key usage", slices.Equal(signed.ExtKeyUsage, t.ExtKeyUsage) && len(signed.UnknownExtKeyUsage) == 0},
	} {
		if !part.same {
			return fmt.Errorf("its %s differs", part.name)
		}
	}
	return nil
}

// KeyID is the subject key identifier of all our certificates: the leftmost 160
// bits of the SHA-256 of the subjectPublicKey's bits (RFC 7093 §2 method 1).
func KeyID(spki []byte) ([]byte, error) {
	input := cryptobyte.String(spki)
	var fields cryptobyte.String
	var bits []byte
	if !input.ReadASN1(&fields, asn1.SEQUENCE) || !input.Empty() || !fields.SkipASN1(asn1.SEQUENCE) ||
		!fields.ReadASN1BitStringAsBytes(&bits) || !fields.Empty() {
		return nil, errors.New("ca: the key isn't a SubjectPublicKeyInfo")
	}
	sum := sha256.Sum256(bits)
	return bytes.Clone(sum[:20]), nil
}

// NewSerial draws 159 random bits: the most that stay positive in the 20 octets
// that RFC 5280 §4.1.2.2 allows. Collisions need 2^79 certificates.
func NewSerial(random io.Reader) (*big.Int, error) {
	var b [20]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("ca: drawing a serial number: %w", err)
	}
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:]), nil
}
