package cacert

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"os"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Check judges a chain for the service and for the ceremonies alike. Its faults are
// those of [chain.Check], weak keys, and that clients would refuse a certificate
// below the chain; its remarks are where the chain isn't one that this package makes.
func Check(certs []*x509.Certificate, need chain.Need) chain.Findings {
	f := chain.Check(certs, need)
	for i, c := range certs {
		name := fmt.Sprintf("certificate %d (%s)", i+1, chain.Subject(c))
		for _, rule := range rules {
			if !rule.holds(link{c, certs, i}) {
				f.Remark(i, "%s: %s", name, rule.says)
			}
		}
		if _, err := CheckKey(c.PublicKey); err != nil {
			if _, unknown := kms.AlgorithmOf(c.PublicKey); unknown == nil { // chain.Check has named the others
				f.Fault(i, "%s: %v", name, err)
			}
		}
	}
	if issuing := certs[0]; need.Below == 0 && len(certs) > 1 && !issuing.MaxPathLenZero {
		f.Remark(0, "certificate 1 (%s): it issues leaves and could certify further CAs: reissue it with path length 0", chain.Subject(issuing))
	}
	if len(f.Faults()) == 0 {
		if err := verify(certs, need); err != nil {
			f.Fault(0, "clients would refuse certificates below this chain: %v", err)
		}
	}
	return f
}

// link is a certificate at its place in a chain.
type link struct {
	*x509.Certificate
	chain []*x509.Certificate
	at    int
}

// parent is the next certificate, or the root itself.
func (l link) parent() *x509.Certificate { return l.chain[min(l.at+1, len(l.chain)-1)] }
func (l link) root() bool                { return l.at == len(l.chain)-1 }

// rules are the profile of CA certificates beside what chain.Check wants.
var rules = []struct {
	says  string
	holds func(link) bool
}{
	{"isn't of version 3, so its extensions don't count: reissue it", func(l link) bool { return l.Version == 3 }},
	{"its serial number isn't positive or has more than 20 octets (RFC 5280 §4.1.2.2): reissue it", func(l link) bool {
		return l.SerialNumber.Sign() > 0 && l.SerialNumber.BitLen() < 160
	}},
	{"its basic constraints aren't critical (RFC 5280 §4.2.1.9): reissue it", func(l link) bool { return !l.IsCA || l.critical(oidBasicConstraints) }},
	{"its key usage isn't critical, which strict verifiers want (RFC 5280 §4.2.1.3): reissue it", func(l link) bool { return l.KeyUsage == 0 || l.critical(chain.OIDKeyUsage) }},
	{"lacks the key usage cRLSign: reissue it with keyCertSign and cRLSign", func(l link) bool {
		return l.KeyUsage&x509.KeyUsageCRLSign != 0 || l.KeyUsage&x509.KeyUsageCertSign == 0 // chain.Check has said so
	}},
	{"has key usages beyond keyCertSign, cRLSign and digitalSignature: reissue it", func(l link) bool {
		return l.KeyUsage&^(x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature) == 0
	}},
	{"has no subject key identifier (RFC 5280 §4.2.1.2): reissue it with one", func(l link) bool {
		return l.at == 0 || len(l.SubjectKeyId) > 0 // chain.Check has said so of the first
	}},
	{"has no authority key identifier, or another than its issuer's key has (RFC 5280 §4.2.1.1): reissue it", func(l link) bool {
		return l.root() && len(l.AuthorityKeyId) == 0 || bytes.Equal(l.AuthorityKeyId, l.parent().SubjectKeyId)
	}},
	{"its extended key usages allow more than code signing: reissue it with codeSigning alone", func(l link) bool {
		return !slices.ContainsFunc(l.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u != x509.ExtKeyUsageCodeSigning }) && len(l.UnknownExtKeyUsage) == 0
	}},
	{"its validity isn't within its issuer's: reissue it to end with the issuer at the latest", func(l link) bool {
		return !l.NotBefore.Before(l.parent().NotBefore) && !l.NotAfter.After(l.parent().NotAfter)
	}},
	{"has no Organization or several, and clients choose the verifier by the one: reissue it with one", func(l link) bool { return len(l.Subject.Organization) == 1 }},
	{"has a name longer than 64 characters (RFC 5280 appendix A.1): reissue it with a shorter one", func(l link) bool {
		return utf8.RuneCountInString(l.Subject.CommonName) <= maxName && !slices.ContainsFunc(l.Subject.Organization, func(o string) bool { return utf8.RuneCountInString(o) > maxName })
	}},
	{"has the same name as another certificate of the chain, and verifiers find issuers by their names: reissue it with one of its own", func(l link) bool {
		return !l.shared(func(c *x509.Certificate) []byte { return c.RawSubject })
	}},
	{"has the same key as another certificate of the chain: reissue it for a key of its own", func(l link) bool {
		return !l.shared(func(c *x509.Certificate) []byte { return c.RawSubjectPublicKeyInfo })
	}},
	{"its signature's hash isn't the one that goes with the issuer's key (P-256 SHA-256, P-384 SHA-384, P-521 SHA-512): reissue it", func(l link) bool {
		a, err := kms.AlgorithmOf(l.parent().PublicKey)
		return err != nil || l.parent().PublicKeyAlgorithm != x509.ECDSA || hashName(l.SignatureAlgorithm) == a.Hash().String()
	}},
}

var oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19} // RFC 5280 §4.2.1.9

func (l link) critical(id asn1.ObjectIdentifier) bool {
	_, critical := chain.Extension(l.Certificate, id)
	return critical
}

// shared reports whether a certificate above has the same part.
func (l link) shared(part func(*x509.Certificate) []byte) bool {
	return slices.ContainsFunc(l.chain[l.at+1:], func(c *x509.Certificate) bool { return bytes.Equal(part(c), part(l.Certificate)) })
}

// verify asks the standard library about a leaf below the chain, as Go clients do.
func verify(certs []*x509.Certificate, need chain.Need) error {
	r, err := chain.NewReplica(certs, need.Below)
	if err != nil {
		return err
	}
	return r.Sample(need.Now, need.Lifetime)
}

// hashName is the hash of a signature algorithm, as crypto.Hash writes it.
func hashName(a x509.SignatureAlgorithm) string {
	switch a {
	case x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.SHA256WithRSAPSS:
		return "SHA-256"
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		return "SHA-384"
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		return "SHA-512"
	}
	return a.String()
}

// timeStamping is id-kp-timeStamping alone, in DER.
var timeStamping = []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08}

// stamp makes the certificate a timestamp authority's, below a root.
func (d *Draft) stamp(f *faults) {
	t := d.Template
	t.IsCA, t.MaxPathLen, t.KeyUsage = false, Unlimited, x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}
	// RFC 3161 §2.3: critical, which crypto/x509 doesn't make it by itself.
	t.ExtraExtensions = []pkix.Extension{{Id: chain.OIDExtKeyUsage, Critical: true, Value: timeStamping}}
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

// stampingRules are what verifiers want of a timestamp authority's certificate.
var stampingRules = []struct {
	says  string
	holds func(link) bool
}{
	{"is a CA's, and verifiers refuse timestamps that a CA signs", func(l link) bool { return !l.IsCA }},
	{"lacks the extended key usage timeStamping, or has another one beside it (RFC 3161 §2.3)", func(l link) bool {
		return slices.Equal(l.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) && len(l.UnknownExtKeyUsage) == 0
	}},
	{"its extended key usage isn't critical (RFC 3161 §2.3)", func(l link) bool { return len(l.ExtKeyUsage) == 0 || l.critical(chain.OIDExtKeyUsage) }},
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
	_, err := chain.Verify(certs[0], certs[1:], now, x509.ExtKeyUsageTimeStamping)
	return err
}

// Read reads the chain file that path.chain of the configuration names, and gives what
// certificates it has. What check finds wrong is a fault there; remark takes what clients
// put up with, and may be nil.
func Read(path string, file setting.Path, check func([]*x509.Certificate) chain.Findings, remark func(string), f *setting.Faults) []*x509.Certificate {
	b, err := os.ReadFile(string(file))
	if err != nil {
		f.Add(path+".chain", "%v", err)
		return nil
	}
	certs, err := chain.Parse(b)
	if err != nil {
		f.Add(path+".chain", "%s: %v", file, err)
		return nil
	}
	for _, found := range check(certs) {
		if !found.Remark {
			f.Add(path+".chain", "%s: %s", file, found.Text)
		} else if remark != nil {
			remark(fmt.Sprintf("%s.chain: %s: %s", path, file, found.Text))
		}
	}
	return certs
}

// OpenKey opens the key that path.key of the configuration names, and wants it to be that
// of the first certificate in file, where there is one; nil where it adds a fault.
func OpenKey(ctx context.Context, path string, ref setting.KeyRef, of string, file setting.Path, certs []*x509.Certificate, o kms.Options, f *setting.Faults) kms.Signer {
	if len(certs) > 0 {
		o.Public = certs[0].PublicKey
	}
	signer, err := keystore.Open(ctx, string(ref), o)
	switch {
	case err != nil:
		f.Add(path+".key", "%v", err)
		return nil
	case len(certs) > 0 && !pubkey.Equal(o.Public, signer.Public()):
		f.Add(path+".key", "isn't the key of the first certificate (%s) in %s: name the %s's key, or put its certificate first", chain.Subject(certs[0]), file, of)
		kms.Close(signer)
		return nil
	}
	return signer
}
