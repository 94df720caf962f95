package cacert

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
)

var oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37} // RFC 5280 §4.2.1.12

// timeStamping is id-kp-timeStamping alone, in DER.
var timeStamping = []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08}

// stamp makes the certificate a timestamp authority's, below a root.
func (d *Draft) stamp(f *faults) {
	t := d.Template
	t.IsCA, t.MaxPathLen, t.KeyUsage = false, Unlimited, x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}
	// RFC 3161 §2.3: critical, which crypto/x509 doesn't make it by itself.
	t.ExtraExtensions = []pkix.Extension{{Id: oidExtKeyUsage, Critical: true, Value: timeStamping}}
	if len(d.Parent) != 1 || !chain.SelfSigned(d.Parent[0]) {
		f.add("a timestamp authority's certificate is signed by the root: name the root's certificate as the issuer")
		return
	}
	for _, found := range chain.Check(d.Parent, chain.Need{Now: d.Now}) {
		if !found.Remark {
			f.add("the issuer's chain: %s", found.Text)
		}
	}
}

// timestamping reports whether the certificate is a timestamp authority's.
func (d *Draft) timestamping() bool { return !d.Template.IsCA }

// verifiesFor says what crypto/x509 is asked.
func (d *Draft) verifiesFor() string {
	if d.timestamping() {
		return "crypto/x509 verifies the chain for timestamps"
	}
	return "crypto/x509 verifies the chain for code signing"
}

// stampingRules are what verifiers want of a timestamp authority's certificate.
var stampingRules = []struct {
	says  string
	holds func(link) bool
}{
	{"is a CA's, and verifiers refuse timestamps that a CA signs", func(l link) bool { return !l.IsCA }},
	{"lacks the extended key usage timeStamping, or has another one beside it (RFC 3161 §2.3)", func(l link) bool {
		return slices.Equal(l.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) && len(l.UnknownExtKeyUsage) == 0
	}},
	{"its extended key usage isn't critical (RFC 3161 §2.3)", func(l link) bool { return len(l.ExtKeyUsage) == 0 || l.critical(oidExtKeyUsage) }},
	{"its validity isn't within its issuers'", func(l link) bool {
		return !slices.ContainsFunc(l.chain, func(c *x509.Certificate) bool { return l.NotBefore.Before(c.NotBefore) || l.NotAfter.After(c.NotAfter) })
	}},
	{"its key usage isn't digitalSignature or nonRepudiation alone", func(l link) bool {
		return l.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0
	}},
}

// CheckTimestamping finds every reason why clients would refuse timestamps of a chain,
// the authority's certificate first and the root last.
func CheckTimestamping(certs []*x509.Certificate, now time.Time) (f chain.Findings) {
	add := func(at int, format string, args ...any) {
		f.Fault(at, "certificate %d (%s): %s", at+1, chain.Subject(certs[at]), fmt.Sprintf(format, args...))
	}
	if len(certs) < 2 {
		add(0, "is alone: put the authority's certificate first, each followed by the one that signed it, and the root last")
		return f
	}
	for _, rule := range stampingRules {
		if !rule.holds(link{certs[0], certs, 0}) {
			add(0, "%s: have the root sign another with mayfly ca intermediate --purpose timestamp", rule.says)
		}
	}
	root := len(certs) - 1
	for i, c := range certs {
		if _, err := CheckKey(c.PublicKey); err != nil {
			add(i, "%v", err)
		}
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			add(i, "is valid from %s to %s: renew it, or correct this machine's clock (%s)", chain.Stamp(c.NotBefore), chain.Stamp(c.NotAfter), chain.Stamp(now))
		} else if i < root && c.CheckSignatureFrom(certs[i+1]) != nil {
			add(i, "isn't signed by the next (%s), or that may not sign it: put each certificate's issuer after it", chain.Subject(certs[i+1]))
		}
	}
	if !chain.SelfSigned(certs[root]) {
		add(root, "isn't a self-signed root: add its issuer (%s) at the end", certs[root].Issuer)
	}
	if len(f) == 0 {
		if err := verifyTimestamping(certs, now); err != nil {
			add(0, "clients would refuse its timestamps: %v", err)
		}
	}
	return f
}

// IsTimestamping reports whether a certificate is meant to be a timestamp authority's.
func IsTimestamping(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageTimeStamping)
}

// verifyTimestamping asks the standard library, as Go clients do.
func verifyTimestamping(certs []*x509.Certificate, now time.Time) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certs[len(certs)-1])
	for _, c := range certs[1 : len(certs)-1] {
		intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	})
	return err
}
