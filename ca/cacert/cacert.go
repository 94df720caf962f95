// Package cacert makes the certificates of certificate authorities: roots, and
// the intermediates below them. It is the one maker of them, for people who hold a
// ceremony and for the service that certifies its own issuing CAs.
//
// [New] decides what the certificate will say and refuses what can't come out
// well; [Draft.For] takes the key that it is for; [Draft.Sign] signs it and checks
// what was signed. [Check] holds chains that others made against the same rules.
package cacert

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// The validities that are chosen where none is stated. The root is kept offline
// and outlives two intermediates; clients trust what it signs by its window in
// the trust root.
const (
	RootLifetime         = 10 * 365 * Day
	IntermediateLifetime = 5 * 365 * Day
	// A timestamp is verified with today's certificate by some, so this one lives long.
	TimestampLifetime = RootLifetime
	Day               = 24 * time.Hour
	// maxLifetime is longer than any algorithm of today should be relied on.
	maxLifetime = 30 * 365 * Day
)

// Unlimited is the path length of a root that states none (RFC 5280 §4.2.1.9).
const Unlimited = -1

// Profile is what a person chooses about a certificate.
type Profile struct {
	// Organization is the O of every certificate of a chain: clients choose the
	// verifier by it. Empty is the issuer's; a root's is required.
	Organization string
	// CommonName of the certificate; empty makes one of the organization.
	CommonName string
	// Lifetime, both ends included; zero is RootLifetime, IntermediateLifetime or
	// TimestampLifetime, shortened to end with the issuer. A stated one is never shortened.
	Lifetime time.Duration
	// PathLength is how many CA certificates may come below this one: 0 for one
	// that issues leaves, 1 for one that certifies issuing CAs. A root's is at
	// least 1, or Unlimited.
	PathLength int
	// Timestamping is for a timestamp authority: its certificate signs timestamps and
	// certifies nothing, so that PathLength says nothing.
	Timestamping bool
}

// Key is a private key that signs, and the words to record it by.
type Key struct {
	crypto.Signer
	Ref string // its reference in canonical form; never a secret
}

// Draft is a certificate that is to be signed. Callers must not write to it.
type Draft struct {
	Parent   []*x509.Certificate // the issuer's chain, issuer first; none for a root
	Template *x509.Certificate
	Now      time.Time // in whole seconds, UTC
	Notes    []string  // what was decided on the way, for the person and the record

	below int // how many CA certificates are expected below it
}

// New decides what a certificate will say. parent is the chain of its issuer,
// root last; with none, it is a root. The error has a line for each reason why
// the certificate can't be made.
func New(parent []*x509.Certificate, p Profile, now time.Time) (*Draft, error) {
	d := &Draft{Parent: parent, Now: now.UTC().Truncate(time.Second), below: max(p.PathLength, 0)}
	d.Template = &x509.Certificate{
		NotBefore:             d.Now,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	var f faults
	if p.Timestamping {
		d.stamp(&f)
	} else {
		d.bound(p, &f)
	}
	d.name(p, &f)
	d.live(p, &f)
	return d, f.err()
}

// bound sets path length and extended key usage, and asks whether the issuer may
// certify that.
func (d *Draft) bound(p Profile, f *faults) {
	d.Template.MaxPathLen, d.Template.MaxPathLenZero = p.PathLength, p.PathLength == 0
	if len(d.Parent) == 0 {
		if p.PathLength == Unlimited {
			d.below = 1
		} else if p.PathLength < 1 {
			f.add("a root of path length %d could certify no intermediate: state 1 or more, or none", p.PathLength)
		}
		return
	}
	if p.PathLength < 0 || p.PathLength > chain.MaxLength {
		f.add("an intermediate states its path length: 0 for one that issues, 1 for one that certifies issuing CAs")
		return
	}
	d.Template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	for _, found := range CheckUse(d.Parent, chain.Need{Now: d.Now, Below: p.PathLength + 1}) {
		if found.Remark {
			d.note("the issuer's chain: %s", found.Text)
		} else {
			f.add("the issuer's chain: %s", found.Text)
		}
	}
	if len(d.Parent) == chain.MaxLength {
		f.add("the issuer's chain has %d certificates already, and no longer one is read", chain.MaxLength)
	}
}

// Kind is what the certificate is, in words, and how long it lives where nobody says.
func (d *Draft) Kind() (name string, lifetime time.Duration) {
	switch {
	case len(d.Parent) == 0:
		return "root", RootLifetime
	case d.Template.IsCA:
		return "intermediate", IntermediateLifetime
	default:
		return "timestamp authority", TimestampLifetime
	}
}

// name makes the subject. RFC 5280 appendix A.1 bounds both parts to 64 characters.
func (d *Draft) name(p Profile, f *faults) {
	if len(d.Parent) > 0 {
		root := d.Parent[len(d.Parent)-1].Subject.Organization
		switch {
		case len(root) != 1:
			f.add("the issuer's root has %d Organizations and clients choose the verifier by the one: make a root that has one", len(root))
		case p.Organization == "":
			p.Organization = root[0]
		case p.Organization != root[0]:
			f.add("the organization is to be the root's, since clients choose the verifier by it: %q, not %q", root[0], p.Organization)
		}
	}
	if p.CommonName == "" {
		kind, _ := d.Kind()
		if p.CommonName = p.Organization + " " + kind; utf8.RuneCountInString(p.CommonName) > maxName {
			p.CommonName = kind
		}
	}
	*f = append(*f, CheckName("the organization", p.Organization), CheckName("the common name", p.CommonName))
	d.Template.Subject = pkix.Name{Organization: []string{p.Organization}, CommonName: p.CommonName}
	for _, parent := range d.Parent {
		if parent.Subject.String() == d.Template.Subject.String() {
			f.add("the issuer is called %s too, and verifiers find issuers by their names: choose another common name", chain.Subject(parent))
			return
		}
	}
}

// maxName is the most that RFC 5280 appendix A.1 allows, in characters.
const maxName = 64

// CheckName refuses a part of a subject that can't be shown or is too long. The
// error begins with what, the part's name.
func CheckName(what, name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return fmt.Errorf("%s is empty", what)
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("%s begins or ends in a space: %q", what, name)
	case utf8.RuneCountInString(name) > maxName:
		return fmt.Errorf("%s is longer than %d characters (RFC 5280 appendix A.1)", what, maxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s has characters that can't be printed: %q", what, name)
	}
	return nil
}

// live sets the end of the validity: never beyond any issuer's.
func (d *Draft) live(p Profile, f *faults) {
	_, usual := d.Kind()
	lifetime, stated := cmp.Or(p.Lifetime, usual), p.Lifetime != 0
	if lifetime < Day || lifetime > maxLifetime {
		f.add("a validity of %v: state from 1 day to %d days", lifetime, maxLifetime/Day)
		return
	}
	// RFC 5280 §4.1.2.5: both ends belong to the validity.
	d.Template.NotAfter = d.Now.Add(lifetime - time.Second)
	for _, parent := range d.Parent {
		if !parent.NotAfter.Before(d.Template.NotAfter) {
			continue
		}
		if stated {
			f.add("the certificate would outlive %s, which ends at %s: state at most %d days, or renew the issuer first",
				chain.Subject(parent), chain.Stamp(parent.NotAfter), parent.NotAfter.Sub(d.Now)/Day)
			return
		}
		d.Template.NotAfter = parent.NotAfter
		d.note("the validity is shortened to end with %s", chain.Subject(parent))
	}
	if d.Template.NotAfter.Sub(d.Now) < Day-time.Second && len(d.Parent) > 0 {
		f.add("the issuer ends at %s, too soon for anything below it: renew it first", chain.Stamp(d.Template.NotAfter))
	}
}

func (d *Draft) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(d.Notes, n) {
		d.Notes = append(d.Notes, n)
	}
}

// For names the key that the certificate is for. It refuses one that is weak,
// that no client takes, or that is a key of the issuer's chain.
func (d *Draft) For(public crypto.PublicKey) error {
	spki, err := CheckKey(public)
	if err != nil {
		return err
	}
	for _, parent := range d.Parent {
		if bytes.Equal(parent.RawSubjectPublicKeyInfo, spki) {
			return fmt.Errorf("the key is that of %s already: each certificate has a key of its own", chain.Subject(parent))
		}
	}
	d.Template.PublicKey, d.Template.RawSubjectPublicKeyInfo = public, spki
	return nil
}

// CheckKey is a public key's SubjectPublicKeyInfo when a CA may have it.
func CheckKey(public crypto.PublicKey) ([]byte, error) {
	if _, err := kms.AlgorithmOf(public); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("the key can't be encoded: %w", err)
	}
	policy, err := proof.NewPolicy()
	if err != nil {
		return nil, err
	}
	if err := policy.Strong(spki); err != nil {
		return nil, errors.New(fault.From(err).Public) // the refusal in words, without its reason
	}
	return spki, nil
}

// faults are all that is wrong, a line each.
type faults []error

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }
func (f faults) err() error                      { return errors.Join(f...) }

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
	if err := d.CheckIssuer(issuer); err != nil {
		return nil, err
	}
	template := *d.Template
	template.PublicKey, template.RawSubjectPublicKeyInfo = nil, nil
	var err error
	if template.SubjectKeyId, err = KeyID(d.Template.RawSubjectPublicKeyInfo); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, d.Issuer(), d.Template.PublicKey, issuer)
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
func (d *Draft) CheckIssuer(issuer Key) error {
	if c := d.Issuer(); !pubkey.Equal(c.PublicKey, issuer.Public()) {
		return fmt.Errorf("%s isn't the key of %s: name the key of the issuer's first certificate", issuer.Ref, c.Subject)
	}
	return nil
}

// Issuer is the certificate whose key signs: the first of the issuer's chain, or the root itself.
func (d *Draft) Issuer() *x509.Certificate {
	if len(d.Parent) == 0 {
		return d.Template
	}
	return d.Parent[0]
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
	purpose, verified := "code signing", func() error { return verify(m.Chain, chain.Need{Now: d.Now, Below: d.below}) }
	if d.timestamping() {
		purpose, verified = "timestamps", func() error { return verifyTimestamping(m.Chain, d.Now) }
	}
	for _, rule := range []struct {
		statement string
		holds     func() error
	}{
		{"the signature verifies under the issuer's key, over " + hashName(signed.SignatureAlgorithm), func() error { return signed.CheckSignatureFrom(issuer) }},
		{"the certificate, read back, says what was to be signed", func() error { return d.corresponds(signed) }},
		{"the chain keeps the profile, from the certificate to the root", func() error { return m.keepsProfile(d) }},
		{"crypto/x509 verifies the chain for " + purpose, verified},
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
	findings := CheckTimestamping
	if !d.timestamping() {
		findings = func(certs []*x509.Certificate, now time.Time) chain.Findings {
			return Check(certs, chain.Need{Now: now, Below: d.below})
		}
	}
	var f faults
	for _, found := range findings(m.Chain, d.Now) {
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
