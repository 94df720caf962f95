// Package chain reads the certificate chain of an authority, issuing certificate
// first and self-signed root last. A [Replica] of it says what clients would make of
// a certificate before one is signed. Package cacert judges chains.
package chain

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// Bounds of a chain file: real ones have two or three certificates of 1 kB.
const (
	MaxBytes  = 256 << 10
	MaxLength = 8
)

// Parse reads a chain file, see [pemfile.Certificates]. The error continues a
// sentence that begins with the file's name.
func Parse(b []byte) ([]*x509.Certificate, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("is larger than %d bytes: keep only the chain", MaxBytes)
	}
	chain, err := pemfile.Certificates(b)
	if err == nil && len(chain) > MaxLength {
		err = fmt.Errorf("has more than %d certificates: keep only the chain", MaxLength)
	}
	return chain, err
}

// Encode is one certificate in PEM, with a final new line.
func Encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// PEM is a chain as a chain file has it, in its order.
func PEM(chain []*x509.Certificate) []byte {
	var b []byte
	for _, c := range chain {
		b = append(b, Encode(c.Raw)...)
	}
	return b
}

// Finding is something about one certificate of a chain, in words, with its fix.
type Finding struct {
	At     int  // its place in the chain
	Remark bool // clients take the chain as it is; a fault keeps it from being used
	Text   string
}

// Findings are all that a check found, in its order.
type Findings []Finding

// Fault adds what keeps a chain from being used.
func (f *Findings) Fault(at int, format string, args ...any) {
	*f = append(*f, Finding{At: at, Text: fmt.Sprintf(format, args...)})
}

// Remark adds what should be otherwise and that clients take all the same: a root
// that others keep can't just be made anew.
func (f *Findings) Remark(at int, format string, args ...any) {
	*f = append(*f, Finding{At: at, Remark: true, Text: fmt.Sprintf(format, args...)})
}

// Faults are the words of all faults.
func (f Findings) Faults() []string { return f.words(false) }

// Remarks are the words of all remarks.
func (f Findings) Remarks() []string { return f.words(true) }

func (f Findings) words(remarks bool) []string {
	var all []string
	for _, one := range f {
		if one.Remark == remarks {
			all = append(all, one.Text)
		}
	}
	return all
}

// Need is what a chain is wanted for.
type Need struct {
	Now time.Time
	// Lifetime is that of the certificates to be issued: the chain must last for one more.
	Lifetime time.Duration
	// Below is how many CA certificates come below the first of the chain: none
	// where it issues leaves, one where it certifies short-lived issuing CAs.
	Below int
}

// Stamp is a time as faults and records write it.
func Stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Fingerprint is the SHA-256 of a certificate or key in hexadecimal.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// The types of extensions of CA certificates and timestamp authorities.
var (
	OIDKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 15} // RFC 5280 §4.2.1.3
	OIDExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37} // RFC 5280 §4.2.1.12

	oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30} // RFC 5280 §4.2.1.10
)

// Extension reports whether a certificate has an extension, and whether it is critical.
func Extension(c *x509.Certificate, id asn1.ObjectIdentifier) (has, critical bool) {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	return i >= 0, i >= 0 && c.Extensions[i].Critical
}

// Constrained reports whether a certificate of the chain bounds the names that may
// be certified below it.
func Constrained(chain []*x509.Certificate) bool {
	return slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
		has, _ := Extension(c, oidNameConstraints)
		return has
	})
}

// Subject is a certificate's subject in words.
func Subject(c *x509.Certificate) string {
	if bytes.Equal(c.RawSubject, []byte{0x30, 0}) {
		return "no subject"
	}
	return c.Subject.String()
}

// SelfSigned reports whether a certificate is its own issuer's. A signature of an
// algorithm that can't be verified any more counts: whoever judges chains remarks on it.
func SelfSigned(c *x509.Certificate) bool {
	if !bytes.Equal(c.RawIssuer, c.RawSubject) || len(c.AuthorityKeyId) > 0 && len(c.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId) {
		return false
	}
	err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	_, insecure := errors.AsType[x509.InsecureAlgorithmError](err)
	return err == nil || insecure || errors.Is(err, x509.ErrUnsupportedAlgorithm)
}

// Replica is a chain once more, with other keys, which are at hand, and all else
// the same: what a client makes of a certificate below it, it would make of the
// same one below the chain. So a certificate is tried before the chain's own key
// signs anything.
type Replica struct {
	certs []*x509.Certificate // issuing one first
	key   crypto.Signer       // of the issuing one
}

// NewReplica copies a checked chain. With a below of 1, a short-lived issuing CA comes first.
func NewReplica(chain []*x509.Certificate, below int) (*Replica, error) {
	r := &Replica{}
	all := slices.Clone(chain)
	for range below {
		issuing := *chain[0]
		issuing.Extensions = nil
		all = slices.Insert(all, 0, &issuing)
	}
	for i, c := range slices.Backward(all) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // forgotten with the replica
		if err != nil {
			return nil, fmt.Errorf("chain: making a key for a trial: %w", err)
		}
		t := copyOf(c)
		if i < below {
			t.RawSubject, t.Subject = nil, pkix.Name{CommonName: fmt.Sprintf("issuing CA %d", i)}
			t.IsCA, t.BasicConstraintsValid, t.MaxPathLen, t.MaxPathLenZero = true, true, i, i == 0
			t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageCertSign, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}
		made, err := r.certify(t, key.Public(), key)
		if err != nil {
			return nil, err
		}
		r.certs, r.key = slices.Insert(r.certs, 0, made), key
	}
	return r, nil
}

// copyOf is what a certificate says, without its keys and its serial number.
func copyOf(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: c.RawSubject, NotBefore: c.NotBefore, NotAfter: c.NotAfter, ExtraExtensions: c.Extensions,
	}
}

// certify signs a certificate below the replica; the first signs itself with own.
func (r *Replica) certify(t *x509.Certificate, public crypto.PublicKey, own crypto.Signer) (*x509.Certificate, error) {
	parent, key := t, own
	if len(r.certs) > 0 {
		parent, key = r.certs[0], r.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("chain: a trial: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("chain: a trial can't be read back: %w", err)
	}
	return c, nil
}

// Sample is nil when clients take a certificate of the lifetime from now, whatever
// it names.
func (r *Replica) Sample(now time.Time, lifetime time.Duration) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("chain: making a key for a trial: %w", err)
	}
	return r.verify(&x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, key.Public(), now)
}

// Takes is nil when clients take the leaf, whose signature isn't looked at, when it begins.
func (r *Replica) Takes(leaf *x509.Certificate) error {
	return r.verify(copyOf(leaf), leaf.PublicKey, leaf.NotBefore)
}

// oidSubjectAltName is the type of the names of a leaf (RFC 5280 §4.2.1.6).
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func (r *Replica) verify(t *x509.Certificate, public crypto.PublicKey, now time.Time) error {
	leaf, err := r.certify(t, public, nil)
	if err != nil {
		return err
	}
	// Sigstore's clients read a username, an otherName that crypto/x509 doesn't know, themselves.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	_, err = Verify(leaf, r.certs, now, x509.ExtKeyUsageCodeSigning)
	return err
}

// Verify asks the standard library about a certificate below a chain, as Go clients do, and
// gives the ways from the certificate to the root.
func Verify(leaf *x509.Certificate, chain []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, c := range chain {
		intermediates.AddCert(c)
	}
	return leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
}
