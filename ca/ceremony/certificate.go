package ceremony

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/mayfly-ca/mayfly/ca/chain"
)

// Certificate is a CA certificate that was signed and checked, and how.
type Certificate struct {
	Chain []*x509.Certificate // the new certificate first, the root last

	ceremony *Ceremony
	signedBy string   // reference of the key that signed
	checks   []string // what held after signing
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
func (c *Ceremony) Sign(issuer Key) (*Certificate, error) {
	if c.template.PublicKey == nil {
		return nil, errors.New("ceremony: no key to certify was named")
	}
	parent := c.template
	if len(c.parent) > 0 {
		parent = c.parent[0]
	}
	if !issuer.Of(parent) {
		return nil, fmt.Errorf("%s isn't the key of %s: name the key of the issuer's first certificate", issuer.Ref, parent.Subject)
	}
	template := *c.template
	template.PublicKey, template.RawSubjectPublicKeyInfo = nil, nil
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, c.template.PublicKey, issuer)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", issuer.Ref, err)
	}
	made := &Certificate{ceremony: c, signedBy: issuer.Ref}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &SignedError{Serial: "unknown", SHA256: fingerprint(der), Exists: "nothing is written", Err: fmt.Errorf("what was signed can't be read back: %w", err)}
	}
	made.Chain = append([]*x509.Certificate{signed}, c.parent...)
	if err := made.check(); err != nil {
		return nil, made.failed(err, "nothing is written: make it anew, and keep this message with the record")
	}
	return made, nil
}

func (m *Certificate) failed(err error, exists string) error {
	return &SignedError{Serial: serial(m.Chain[0]), SHA256: fingerprint(m.Chain[0].Raw), Exists: exists, Err: err}
}

// check holds what was signed against what was to be signed and against what
// verifiers want of it.
func (m *Certificate) check() error {
	c, signed := m.ceremony, m.Chain[0]
	issuer := m.Chain[min(1, len(m.Chain)-1)]
	for _, step := range []struct {
		statement string
		holds     func() error
	}{
		{"the signature verifies under the issuer's key, over " + hashName(signed.SignatureAlgorithm), func() error { return signed.CheckSignatureFrom(issuer) }},
		{"the certificate, read back, says what was to be signed", c.corresponds(signed)},
		{"the chain keeps the profile, from the certificate to the root", func() error {
			var f faults
			Check(m.Chain, chain.Need{Now: c.at.Now, Below: c.below}, f.add)
			return f.err()
		}},
		{"crypto/x509 verifies the chain for code signing", func() error { return verify(m.Chain, c.at.Now) }},
	} {
		if err := step.holds(); err != nil {
			return fmt.Errorf("after signing, this doesn't hold: %s: %w", step.statement, err)
		}
		m.checks = append(m.checks, step.statement)
	}
	return nil
}

// corresponds compares the certificate with what was to be signed.
func (c *Ceremony) corresponds(signed *x509.Certificate) func() error {
	return func() error {
		t := c.template
		keyID, err := subjectKeyID(t.RawSubjectPublicKeyInfo)
		if err != nil {
			return err
		}
		authority := keyID
		if len(c.parent) > 0 {
			authority = c.parent[0].SubjectKeyId
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
			{"basic constraints", signed.IsCA && signed.MaxPathLen == t.MaxPathLen && signed.MaxPathLenZero == t.MaxPathLenZero},
			{"key usage", signed.KeyUsage == t.KeyUsage},
			{"extended key usage", slices.Equal(signed.ExtKeyUsage, t.ExtKeyUsage) && len(signed.UnknownExtKeyUsage) == 0},
		} {
			if !part.same {
				return fmt.Errorf("its %s differs", part.name)
			}
		}
		return nil
	}
}

// PEM is the chain in PEM, the new certificate first: the file that
// `ca.authority.chain` names.
func (m *Certificate) PEM() []byte {
	var b bytes.Buffer
	for _, c := range m.Chain {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}
