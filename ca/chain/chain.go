// Package chain reads the certificate chain of an authority, issuing certificate
// first and self-signed root last, and says what keeps it from issuing
// code-signing certificates. The service and the ceremonies ask the same.
package chain

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
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
	if err != nil {
		return nil, err
	}
	return chain, nil
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

// Report takes one fault of a chain, in words, with its fix.
type Report func(format string, args ...any)

// Need is what a chain is wanted for.
type Need struct {
	Now time.Time
	// Lifetime is that of the certificates to be issued: the chain must last for one more.
	Lifetime time.Duration
	// Below is how many CA certificates come below the first of the chain: none
	// where it issues leaves, one where it certifies short-lived issuing CAs.
	Below int
}

// Check reports every reason why the chain can't do what is needed of it.
func Check(chain []*x509.Certificate, need Need, report Report) {
	if root := chain[len(chain)-1]; len(chain) > 1 && signedBy(chain[0], chain[0]) && !signedBy(root, root) {
		report("the chain is upside down: put the issuing certificate first and the root last")
		return // what else could be said would be said of the wrong certificate
	}
	for i, c := range chain {
		name := fmt.Sprintf("certificate %d (%s)", i+1, Subject(c))
		checkValidity(c, name, need, report)
		checkMayIssue(c, name, i+need.Below, report)
		if i == 0 {
			checkIssuing(c, name, len(chain) > 1, report)
		} else if i < len(chain)-1 && !signsCode(c) {
			report("%s: its extended key usages exclude code signing: reissue it with codeSigning", name)
		}
	}
	root := chain[len(chain)-1]
	if len(chain) > 1 && len(root.ExtKeyUsage)+len(root.UnknownExtKeyUsage) > 0 && !signsCode(root) {
		report("the root (%s): its extended key usages exclude code signing: reissue it with codeSigning or without any", Subject(root))
	}
	checkOrder(chain, report)
	for _, c := range chain {
		// Clients choose the verifier by the Organization, so it must be one.
		if !slices.Equal(c.Subject.Organization, root.Subject.Organization) {
			report("the Organization of %s differs from the root's (%s): reissue it with the same", Subject(c), Subject(root))
		}
	}
}

// checkValidity wants each certificate to be valid now and for one more lifetime at its longest.
func checkValidity(c *x509.Certificate, name string, need Need, report Report) {
	now := need.Now
	switch {
	case now.Before(c.NotBefore):
		report("%s: not valid before %s: wait, or correct this machine's clock (%s)", name, Stamp(c.NotBefore), Stamp(now))
	case now.After(c.NotAfter):
		report("%s: expired at %s: renew it, or correct this machine's clock (%s)", name, Stamp(c.NotAfter), Stamp(now))
	case now.Add(need.Lifetime).After(c.NotAfter):
		report("%s: expires at %s, too soon for the certificates it would issue: renew it", name, Stamp(c.NotAfter))
	}
}

// Stamp is a time as faults and records write it.
func Stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Fingerprint is the SHA-256 of a certificate or key in hexadecimal.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// checkMayIssue wants what makes any certificate a CA's (RFC 5280 §4.2.1.3,
// §4.2.1.9) that has below other CA certificates below it.
func checkMayIssue(c *x509.Certificate, name string, below int, report Report) {
	if !c.BasicConstraintsValid || !c.IsCA {
		report("%s: isn't a CA certificate: reissue it with basicConstraints CA:TRUE", name)
	} else if limited := c.MaxPathLen > 0 || c.MaxPathLenZero; limited && c.MaxPathLen < below {
		report("%s: its path length %d forbids the %d CA certificates below it: reissue it with a longer one", name, c.MaxPathLen, below)
	}
	if c.KeyUsage&x509.KeyUsageCertSign == 0 {
		report("%s: lacks the key usage keyCertSign: reissue it with keyCertSign and cRLSign", name)
	}
	if _, err := pubkey.AlgorithmOf(c.PublicKey); err != nil {
		report("%s: %v", name, err)
	}
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		report("%s: is signed with %v: reissue it with ECDSA or RSA PKCS #1 v1.5 over SHA-256, SHA-384 or SHA-512", name, c.SignatureAlgorithm)
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		report("%s: has critical extensions that Mayfly doesn't know (%v): reissue it without", name, c.UnhandledCriticalExtensions)
	}
	if hasNameConstraints(c) {
		report("%s: has name constraints, which Mayfly doesn't evaluate: reissue it without", name)
	}
}

// checkIssuing wants what the leaf certificates and their verifiers lean on.
func checkIssuing(c *x509.Certificate, name string, intermediate bool, report Report) {
	switch {
	case intermediate && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		report("%s: lacks the extended key usage codeSigning: reissue it with codeSigning", name)
	case !intermediate && len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !signsCode(c):
		report("%s: its extended key usages exclude code signing: reissue it with codeSigning or without any", name)
	}
	if len(c.SubjectKeyId) == 0 {
		report("%s: has no subject key identifier (RFC 5280 §4.2.1.2): reissue it with one", name)
	}
	if bytes.Equal(c.RawSubject, []byte{0x30, 0}) {
		report("%s: an issuing certificate needs a name: reissue it with a subject", name)
	}
}

// signsCode reports whether c's extended key usages leave code signing open.
func signsCode(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func hasNameConstraints(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool {
		return e.Id.Equal([]int{2, 5, 29, 30}) // RFC 5280 §4.2.1.10
	})
}

// checkOrder wants each certificate to be signed by the next, and the last by itself.
func checkOrder(chain []*x509.Certificate, report Report) {
	root := chain[len(chain)-1]
	if !signedBy(root, root) {
		report("the last certificate (%s) isn't a self-signed root: add its issuer (%s) at the end", Subject(root), root.Issuer)
	}
	for i, c := range chain[:len(chain)-1] {
		next := chain[i+1]
		switch {
		case !bytes.Equal(c.RawIssuer, next.RawSubject):
			report("certificate %d (%s) was issued by %s, but %s follows it: put each certificate's issuer after it",
				i+1, Subject(c), c.Issuer, Subject(next))
		case !signedBy(c, next):
			report("certificate %d (%s) isn't signed by the key of the next (%s): find the issuer's current certificate",
				i+1, Subject(c), Subject(next))
		case len(c.AuthorityKeyId) > 0 && len(next.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, next.SubjectKeyId):
			report("certificate %d (%s) names another issuer key than the next (%s) has: find the issuer's own certificate",
				i+1, Subject(c), Subject(next))
		}
	}
}

// Subject is a certificate's subject in words.
func Subject(c *x509.Certificate) string {
	if bytes.Equal(c.RawSubject, []byte{0x30, 0}) {
		return "no subject"
	}
	return c.Subject.String()
}

// signedBy reports whether parent's key made the signature under child. What
// parent is allowed to do is checked elsewhere.
func signedBy(child, parent *x509.Certificate) bool {
	return bytes.Equal(child.RawIssuer, parent.RawSubject) &&
		parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
}
