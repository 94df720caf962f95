package cacert

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
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
	{"its key usage isn't critical, which strict verifiers want (RFC 5280 §4.2.1.3): reissue it", func(l link) bool { return l.KeyUsage == 0 || l.critical(oidKeyUsage) }},
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

var (
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19} // RFC 5280 §4.2.1.9
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15} // RFC 5280 §4.2.1.3
)

func (l link) critical(id asn1.ObjectIdentifier) bool {
	for _, e := range l.Extensions {
		if e.Id.Equal(id) {
			return e.Critical
		}
	}
	return false
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
