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
// those of [CheckUse], weak keys, and that clients would refuse a certificate
// below the chain; its remarks are where the chain isn't one that this package makes.
func Check(certs []*x509.Certificate, need chain.Need) chain.Findings {
	f := CheckUse(certs, need)
	for i, c := range certs {
		l := link{c, certs, i, &f}
		l.checkProfile()
		if _, err := CheckKey(c.PublicKey); err != nil {
			_, unknown := kms.AlgorithmOf(c.PublicKey)
			l.when(unknown == nil, "%v", err) // CheckUse has named the others
		}
	}
	issuing := link{certs[0], certs, 0, &f}
	issuing.remark(need.Below == 0 && !issuing.root() && !issuing.MaxPathLenZero, "it issues leaves and could certify further CAs: reissue it with path length 0")
	if len(f.Faults()) == 0 {
		if err := verify(certs, need); err != nil {
			f.Fault(0, "clients would refuse certificates below this chain: %v", err)
		}
	}
	return f
}

// CheckUse finds every reason why the chain can't do what is needed of it.
func CheckUse(certs []*x509.Certificate, need chain.Need) chain.Findings {
	var f chain.Findings
	root := certs[len(certs)-1]
	if len(certs) > 1 && chain.SelfSigned(certs[0]) && !chain.SelfSigned(root) {
		f.Fault(0, "the chain is upside down: put the issuing certificate first and the root last")
		return f // what else could be said would be said of the wrong certificate
	}
	for i, c := range certs {
		l := link{c, certs, i, &f}
		l.checkValidity(need)
		l.checkMayIssue(need.Below)
		l.checkSignature()
		switch {
		case i == 0:
			l.checkIssuing()
		case l.root() && !signsCode(c):
			f.Fault(i, "the root (%s): %s or without any", chain.Subject(c), excludesSigning)
		default:
			l.when(!signsCode(c), excludesSigning)
		}
	}
	checkOrder(certs, &f)
	for i, c := range certs {
		// Clients choose the verifier by the Organization, so it must be one.
		if !slices.Equal(c.Subject.Organization, root.Subject.Organization) {
			f.Fault(i, "the Organization of %s differs from the root's (%s): reissue it with the same", chain.Subject(c), chain.Subject(root))
		}
	}
	return f
}

// excludesSigning is of a certificate below which no code may be signed.
const excludesSigning = "its extended key usages exclude code signing: reissue it with codeSigning"

// link is a certificate at its place in a chain, and where what is found goes.
type link struct {
	*x509.Certificate
	chain []*x509.Certificate
	at    int
	found *chain.Findings
}

func (l link) root() bool { return l.at == len(l.chain)-1 }

// parent is the next certificate, or the root itself.
func (l link) parent() *x509.Certificate { return l.chain[min(l.at+1, len(l.chain)-1)] }

// name is the certificate's for findings.
func (l link) name() string {
	return fmt.Sprintf("certificate %d (%s)", l.at+1, chain.Subject(l.Certificate))
}

// when adds a fault where something is wrong, and remark a remark.
func (l link) when(wrong bool, format string, args ...any) {
	if wrong {
		l.found.Fault(l.at, "%s: %s", l.name(), fmt.Sprintf(format, args...))
	}
}

func (l link) remark(odd bool, format string, args ...any) {
	if odd {
		l.found.Remark(l.at, "%s: %s", l.name(), fmt.Sprintf(format, args...))
	}
}

// checkValidity wants each certificate to be valid now and for one more lifetime at its longest.
func (l link) checkValidity(need chain.Need) {
	now, ended := need.Now, need.Now.After(l.NotAfter)
	early := now.Before(l.NotBefore)
	l.when(early, "not valid before %s: wait, or correct this machine's clock (%s)", chain.Stamp(l.NotBefore), chain.Stamp(now))
	l.when(ended, "expired at %s: renew it, or correct this machine's clock (%s)", chain.Stamp(l.NotAfter), chain.Stamp(now))
	l.when(!early && !ended && now.Add(need.Lifetime).After(l.NotAfter), "expires at %s, too soon for the certificates it would issue: renew it", chain.Stamp(l.NotAfter))
}

// checkMayIssue wants what makes any certificate a CA's (RFC 5280 §4.2.1.3,
// §4.2.1.9) that has below other CA certificates below the chain.
func (l link) checkMayIssue(below int) {
	below += l.at
	ca, limited := l.BasicConstraintsValid && l.IsCA, l.MaxPathLen > 0 || l.MaxPathLenZero
	l.when(!ca, "isn't a CA certificate: reissue it with basicConstraints CA:TRUE")
	l.when(ca && limited && l.MaxPathLen < below, "its path length %d forbids the %d CA certificates below it: reissue it with a longer one", l.MaxPathLen, below)

	stated, _ := chain.Extension(l.Certificate, chain.OIDKeyUsage)
	signs, unstated := l.KeyUsage&x509.KeyUsageCertSign != 0, l.root() && !stated // what `openssl req -x509` makes
	l.remark(!signs && unstated, "the root states no key usage, which strict verifiers want (RFC 5280 §4.2.1.3): have the next root state keyCertSign and cRLSign")
	l.when(!signs && !unstated, "lacks the key usage keyCertSign: reissue it with keyCertSign and cRLSign")

	_, err := pubkey.AlgorithmOf(l.PublicKey)
	l.when(err != nil, "%v", err)
	l.when(len(l.UnhandledCriticalExtensions) > 0, "has critical extensions that Mayfly doesn't know (%v): reissue it without", l.UnhandledCriticalExtensions)
	l.remark(chain.Constrained(l.chain[l.at:l.at+1]), "has name constraints: who has a name outside of them is refused a certificate")
}

// checkSignature wants an algorithm that clients verify. Nobody verifies that of a
// root, which is trusted for what it is.
func (l link) checkSignature() {
	switch l.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return
	}
	algorithm := l.SignatureAlgorithm.String()
	if l.SignatureAlgorithm == x509.UnknownSignatureAlgorithm {
		algorithm = "an algorithm that Mayfly doesn't know"
	}
	l.remark(l.root(), "the root signed itself with %s, which no client verifies: compare its fingerprint, SHA-256 %s, with what you have from elsewhere", algorithm, chain.Fingerprint(l.Raw))
	l.when(!l.root(), "is signed with %s: reissue it with ECDSA or RSA PKCS #1 v1.5 over SHA-256, SHA-384 or SHA-512", algorithm)
}

// checkIssuing wants of the first what the leaf certificates and their verifiers lean on.
func (l link) checkIssuing() {
	l.when(!l.root() && !slices.Contains(l.ExtKeyUsage, x509.ExtKeyUsageCodeSigning), "lacks the extended key usage codeSigning: reissue it with codeSigning")
	l.when(l.root() && !signsCode(l.Certificate), excludesSigning+" or without any")
	l.when(len(l.SubjectKeyId) == 0, "has no subject key identifier (RFC 5280 §4.2.1.2): reissue it with one")
	l.when(bytes.Equal(l.RawSubject, []byte{0x30, 0}), "an issuing certificate needs a name: reissue it with a subject")
}

// signsCode reports whether c's extended key usages leave code signing open.
func signsCode(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// checkOrder wants each certificate to be signed by the next, and the last by itself.
func checkOrder(certs []*x509.Certificate, f *chain.Findings) {
	root := len(certs) - 1
	if c := certs[root]; !chain.SelfSigned(c) {
		f.Fault(root, "the last certificate (%s) isn't a self-signed root: add its issuer (%s) at the end", chain.Subject(c), c.Issuer)
	}
	for i, c := range certs[:root] {
		name, next := link{c, certs, i, f}.name(), certs[i+1]
		switch {
		case !bytes.Equal(c.RawIssuer, next.RawSubject):
			f.Fault(i, "%s was issued by %s, but %s follows it: put each certificate's issuer after it", name, c.Issuer, chain.Subject(next))
		case next.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil: // what next may sign is checked elsewhere
			f.Fault(i, "%s isn't signed by the key of the next (%s): find the issuer's current certificate", name, chain.Subject(next))
		case len(c.AuthorityKeyId) > 0 && len(next.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, next.SubjectKeyId):
			f.Fault(i, "%s names another issuer key than the next (%s) has: find the issuer's own certificate", name, chain.Subject(next))
		}
	}
}

// checkProfile remarks on what isn't as this package makes CA certificates, beside
// what CheckUse finds.
func (l link) checkProfile() {
	l.remark(l.Version != 3, "isn't of version 3, so its extensions don't count: reissue it")
	l.remark(l.SerialNumber.Sign() <= 0 || l.SerialNumber.BitLen() >= 160, "its serial number isn't positive or has more than 20 octets (RFC 5280 §4.1.2.2): reissue it")
	l.remark(l.IsCA && !l.critical(oidBasicConstraints), "its basic constraints aren't critical (RFC 5280 §4.2.1.9): reissue it")

	l.remark(l.KeyUsage != 0 && !l.critical(chain.OIDKeyUsage), "its key usage isn't critical, which strict verifiers want (RFC 5280 §4.2.1.3): reissue it")
	signs, lists := l.KeyUsage&x509.KeyUsageCertSign != 0, l.KeyUsage&x509.KeyUsageCRLSign != 0
	l.remark(signs && !lists, "lacks the key usage cRLSign: reissue it with keyCertSign and cRLSign")
	beyond := l.KeyUsage &^ (x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature)
	l.remark(beyond != 0, "has key usages beyond keyCertSign, cRLSign and digitalSignature: reissue it")

	l.remark(l.at > 0 && len(l.SubjectKeyId) == 0, "has no subject key identifier (RFC 5280 §4.2.1.2): reissue it with one") // the first's is a fault
	namesIssuer := l.root() && len(l.AuthorityKeyId) == 0 || bytes.Equal(l.AuthorityKeyId, l.parent().SubjectKeyId)
	l.remark(!namesIssuer, "has no authority key identifier, or another than its issuer's key has (RFC 5280 §4.2.1.1): reissue it")

	more := slices.ContainsFunc(l.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u != x509.ExtKeyUsageCodeSigning })
	l.remark(more || len(l.UnknownExtKeyUsage) > 0, "its extended key usages allow more than code signing: reissue it with codeSigning alone")
	l.remark(l.exceeds(l.parent()), "its validity isn't within its issuer's: reissue it to end with the issuer at the latest")

	l.remark(len(l.Subject.Organization) != 1, "has no Organization or several, and clients choose the verifier by the one: reissue it with one")
	long := func(name string) bool { return utf8.RuneCountInString(name) > maxName }
	l.remark(long(l.Subject.CommonName) || slices.ContainsFunc(l.Subject.Organization, long), "has a name longer than 64 characters (RFC 5280 appendix A.1): reissue it with a shorter one")
	sameName := l.shared(func(c *x509.Certificate) []byte { return c.RawSubject })
	l.remark(sameName, "has the same name as another certificate of the chain, and verifiers find issuers by their names: reissue it with one of its own")
	sameKey := l.shared(func(c *x509.Certificate) []byte { return c.RawSubjectPublicKeyInfo })
	l.remark(sameKey, "has the same key as another certificate of the chain: reissue it for a key of its own")

	a, err := kms.AlgorithmOf(l.parent().PublicKey)
	goesWith := err != nil || l.parent().PublicKeyAlgorithm != x509.ECDSA || hashName(l.SignatureAlgorithm) == a.Hash().String()
	l.remark(!goesWith, "its signature's hash isn't the one that goes with the issuer's key (P-256 SHA-256, P-384 SHA-384, P-521 SHA-512): reissue it")
}

var oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19} // RFC 5280 §4.2.1.9

func (l link) critical(id asn1.ObjectIdentifier) bool {
	_, critical := chain.Extension(l.Certificate, id)
	return critical
}

// exceeds reports whether l's validity isn't within that of c.
func (l link) exceeds(c *x509.Certificate) bool {
	return l.NotBefore.Before(c.NotBefore) || l.NotAfter.After(c.NotAfter)
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
	for _, found := range CheckUse(d.Parent, chain.Need{Now: d.Now}) {
		if !found.Remark {
			f.add("the issuer's chain: %s", found.Text)
		}
	}
}

// timestamping reports whether the certificate is a timestamp authority's.
func (d *Draft) timestamping() bool { return !d.Template.IsCA }

// CheckTimestamping finds every reason why clients would refuse timestamps of a chain,
// the authority's certificate first and the root last.
func CheckTimestamping(certs []*x509.Certificate, now time.Time) (f chain.Findings) {
	first, alone := link{certs[0], certs, 0, &f}, len(certs) < 2
	first.when(alone, "is alone: put the authority's certificate first, each followed by the one that signed it, and the root last")
	if alone {
		return f
	}
	first.checkStamping()
	for i, c := range certs {
		l := link{c, certs, i, &f}
		_, err := CheckKey(c.PublicKey)
		l.when(err != nil, "%v", err)
		untimely := now.Before(c.NotBefore) || now.After(c.NotAfter)
		l.when(untimely, "is valid from %s to %s: renew it, or correct this machine's clock (%s)", chain.Stamp(c.NotBefore), chain.Stamp(c.NotAfter), chain.Stamp(now))
		l.when(!untimely && !l.root() && c.CheckSignatureFrom(l.parent()) != nil, "isn't signed by the next (%s), or that may not sign it: put each certificate's issuer after it", chain.Subject(l.parent()))
		l.when(l.root() && !chain.SelfSigned(c), "isn't a self-signed root: add its issuer (%s) at the end", c.Issuer)
	}
	if len(f) == 0 {
		err := verifyTimestamping(certs, now)
		first.when(err != nil, "clients would refuse its timestamps: %v", err)
	}
	return f
}

// checkStamping wants what verifiers want of a timestamp authority's certificate.
func (l link) checkStamping() {
	const another = ": have the root sign another with mayfly ca intermediate --purpose timestamp"
	l.when(l.IsCA, "is a CA's, and verifiers refuse timestamps that a CA signs"+another)
	alone := slices.Equal(l.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) && len(l.UnknownExtKeyUsage) == 0
	l.when(!alone, "lacks the extended key usage timeStamping, or has another one beside it (RFC 3161 §2.3)"+another)
	l.when(len(l.ExtKeyUsage) > 0 && !l.critical(chain.OIDExtKeyUsage), "its extended key usage isn't critical (RFC 3161 §2.3)"+another)
	l.when(slices.ContainsFunc(l.chain, l.exceeds), "its validity isn't within its issuers'"+another)
	beyond := l.KeyUsage &^ (x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment)
	l.when(beyond != 0, "its key usage isn't digitalSignature or nonRepudiation alone"+another)
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
