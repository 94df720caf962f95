package client

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// Trust is what a trusted root says: the authorities and logs that count, each
// with the window in which it does.
type Trust struct{ root *trustroot.History }

// ParseTrust reads a trusted_root.json. Logs whose key isn't ECDSA P-256 are
// passed over: their SCTs count as those of unknown logs.
func ParseTrust(document []byte) (*Trust, error) {
	root, err := trustroot.Parse(document)
	if err != nil {
		return nil, problem(Failed, "give the trusted_root.json of the CA", "the trusted root can't be used").because(err)
	}
	return &Trust{root}, nil
}

// VerifyChain verifies the leaf for code signing, at its own notBefore, to the
// root of an authority whose window holds that moment, using certificates of
// the trusted root alone. It returns the verified chain, leaf first and root
// last. Every error is Unverified.
func (t *Trust) VerifyChain(leaf *x509.Certificate) ([]*x509.Certificate, error) {
	at := leaf.NotBefore
	if leaf.IsCA {
		return nil, problem(Unverified, "", "the certificate is a CA certificate, not a signer's")
	}
	// crypto/x509 takes a leaf without any extended key usage for one with all of them.
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) {
		return nil, problem(Unverified, "", "the certificate is not for code signing")
	}
	// A SAN that holds nothing but an OtherName is critical and unknown to
	// crypto/x509; it is read by package inspect instead.
	checked := *leaf
	checked.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), extension.OIDSAN.Equal)
	last := errors.New("it lists no authority for that time")
	for _, authority := range t.root.Authorities {
		if !authority.Holds(at) {
			continue
		}
		chains, err := chain.Verify(&checked, authority.Chain, at, x509.ExtKeyUsageCodeSigning)
		if err == nil {
			return append([]*x509.Certificate{leaf}, chains[0][1:]...), nil
		}
		last = err
	}
	return nil, problem(Unverified, "check that the trusted root is that of this CA",
		"the certificate does not chain to the trusted root").because(last)
}

// SCTResult is one SCT of a certificate and what verifying it came to.
type SCTResult struct {
	SCT ctlog.SCT
	Log *ctlog.Description // nil when no listed log has the id
	Err error              // nil: verified
}

// VerifySCTs verifies each embedded SCT with the key of the listed log that has
// its id, whose window must hold the SCT's time. issuer is the certificate that
// signed the leaf; verify the chain first. The error is for a list that can't be
// read; a certificate without SCTs has no results.
func (t *Trust) VerifySCTs(leaf, issuer *x509.Certificate) ([]SCTResult, error) {
	scts, err := EmbeddedSCTs(leaf)
	if err != nil || len(scts) == 0 {
		return nil, err
	}
	tbs, err := tbsWithoutSCTs(leaf)
	if err != nil {
		return nil, err
	}
	entry := ctlog.Chain{IssuerKeyHash: sha256.Sum256(issuer.RawSubjectPublicKeyInfo), TBS: tbs}
	results := make([]SCTResult, len(scts))
	for i, sct := range scts {
		r := &results[i]
		r.SCT = sct
		r.Log, r.Err = t.verify(sct, entry)
	}
	return results, nil
}

// verify verifies an SCT with the key of its log, whose window must hold the SCT's time.
func (t *Trust) verify(sct ctlog.SCT, entry ctlog.Chain) (*ctlog.Description, error) {
	at, ok := SCTTime(sct)
	if !ok {
		return nil, errors.New("its time is out of range")
	}
	i := slices.IndexFunc(t.root.CTLogs, func(l ctlog.Description) bool { return l.ID == sct.LogID })
	if i < 0 {
		return nil, errors.New("the trusted root lists no log with this id")
	}
	log := &t.root.CTLogs[i]
	if !log.Holds(at) {
		return log, errors.New("its time is outside the window in which the trusted root accepts the log")
	}
	key, err := ctlog.ParseKey(log.SPKI)
	if err != nil {
		return log, err
	}
	return log, sct.Verify(key, entry)
}

// SCTTime is the SCT's time; false when it is beyond the year 9999, which no
// format of this program can write.
func SCTTime(sct ctlog.SCT) (time.Time, bool) {
	const beyond = 253402300800000 // 10000-01-01 in ms
	if sct.Timestamp >= beyond {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(sct.Timestamp)).UTC(), true // #nosec G115 -- bounded above
}

// Verified is a certificate that passed.
type Verified struct {
	Chain []*x509.Certificate // leaf first, root last, as verified: only the leaf is from the answer
	SCTs  []SCTResult         // at least one verified, unless unlogged was allowed
}

// clockSkew is how far this machine's clock may be off for a certificate that
// begins or ends about now.
const clockSkew = 5 * time.Minute

// Verify checks an answer of the CA: the leaf holds our key, is valid at now,
// chains to the trusted root, names the token's identity, and at least one SCT
// of a listed log is right. unlogged allows a certificate without SCTs, never a
// wrong one.
func (t *Trust) Verify(leaf *x509.Certificate, key *Key, token *Token, unlogged bool, now time.Time) (*Verified, error) {
	if !pubkey.Equal(leaf.PublicKey, key.Public()) {
		return nil, problem(Unverified, "report it to the operator of the CA", "the certificate is for another key")
	}
	if now.Add(clockSkew).Before(leaf.NotBefore) || now.Add(-clockSkew).After(leaf.NotAfter) {
		return nil, problem(Unverified, "check this machine's clock; if it is right, report it to the operator of the CA",
			"the certificate is valid from %s to %s, which is not now", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	chain, err := t.VerifyChain(leaf)
	if err != nil {
		return nil, err
	}
	if err := checkSubject(leaf, token); err != nil {
		return nil, err
	}
	results, err := t.VerifySCTs(leaf, chain[1])
	if err != nil {
		return nil, problem(Unverified, "report it to the operator of the CA", "the certificate's SCTs can't be read").because(err)
	}
	verified := &Verified{Chain: chain, SCTs: results}
	if len(results) == 0 && unlogged {
		return verified, nil
	}
	if len(results) == 0 {
		return nil, problem(Unverified, "configure a log at the CA, or accept such certificates with --accept-unlogged",
			"the certificate carries no SCT: it is in no transparency log that verifiers know of")
	}
	var reasons []error
	for _, r := range results {
		if r.Err == nil {
			return verified, nil
		}
		reasons = append(reasons, fmt.Errorf("SCT of the log %x: %w", r.SCT.LogID[:6], r.Err))
	}
	return nil, problem(Unverified, "check that the trusted root is the CA's current one",
		"no SCT of the certificate could be verified").because(errors.Join(reasons...))
}

// checkSubject compares what the certificate says of the identity with the
// token that was sent. It knows no issuer's rule, so of a URI it can't tell how
// it was made; but the subject and the issuer that stand beside it are the
// token's. A mail address is the token's own, whichever issuer is recorded: a
// broker's is another than the token's. CAs that write no subject pass.
func checkSubject(leaf *x509.Certificate, token *Token) error {
	const report = "report it to the operator of the CA"
	set, err := extension.Parse(leaf.Extensions)
	names := extension.SANs(leaf)
	switch {
	case err != nil:
		return problem(Unverified, report, "the certificate's identity extensions are malformed").because(err)
	case set.TokenSubject != "" && set.TokenSubject != token.Subject:
		return problem(Unverified, report, "the certificate is for another subject than the token's")
	case len(names) != 1 || names[0].Value == "":
		return problem(Unverified, report, "the certificate does not name one identity")
	}
	switch name := names[0].Value; names[0].Type {
	case "email":
		if name != token.Challenge() {
			return problem(Unverified, report, "the certificate is for another mail address than the token's")
		}
		return nil
	case "username":
		if domain, ok := strings.CutPrefix(name, token.Subject+"!"); !ok || domain == "" || token.Subject == "" {
			return problem(Unverified, report, "the certificate is for another username than the token's")
		}
	case "uri":
	default:
		return problem(Unverified, report, "the certificate does not name one identity")
	}
	if set.Issuer != "" && set.Issuer != token.Issuer {
		return problem(Unverified, report, "the certificate records another issuer than the token's")
	}
	return nil
}

// tbsWithoutSCTs is the certificate's TBSCertificate without the SCT list and
// with every other byte as it was: what a log has signed (RFC 6962 §3.2).
func tbsWithoutSCTs(cert *x509.Certificate) ([]byte, error) {
	before, extensions, err := tbs.Split(cert.RawTBSCertificate)
	if err != nil {
		return nil, err
	}
	kept, _, err := tbs.Replace(extensions, ctlog.OIDSCTList, func(cryptobyte.String) ([]byte, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return tbs.Join(before, kept), nil
}

// EmbeddedSCTs reads the SCTs in a certificate. None is (nil, nil).
func EmbeddedSCTs(cert *x509.Certificate) ([]ctlog.SCT, error) {
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(ctlog.OIDSCTList) })
	if i < 0 {
		return nil, nil
	}
	var list cryptobyte.String
	input := cryptobyte.String(cert.Extensions[i].Value)
	if !input.ReadASN1(&list, cbasn1.OCTET_STRING) || !input.Empty() || len(list) == 0 {
		return nil, errors.New("the SCT list is not a DER OCTET STRING")
	}
	return ctlog.ParseList(list)
}
