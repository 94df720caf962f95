// Package trustroot has the trust history, and writes from it the documents that
// tell Sigstore clients whom to trust and where to ask. It reads a trusted root
// back too. How clients differ in what they accept decides most of what is written
// here; each such rule has a test.
package trustroot

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Media types of the documents. The trusted root's is the one form that all
// clients take: sigstore-go refuses version 0.2, sigstore-python knows only 0.1.
const (
	TrustedRootMediaType   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	SigningConfigMediaType = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	TrustConfigMediaType   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// History is all that clients are to trust, past, present and to come, each with
// its window: what was signed in a window is verified for ever, so an entry ends
// and doesn't go. Every document is rendered from it, and from nothing else.
type History struct {
	// Authorities are the certificate authorities.
	Authorities []Authority
	// CTLogs are the logs that SCTs come from.
	CTLogs []ctlog.Description
	// TimestampAuthorities are ours and others'.
	TimestampAuthorities []Authority
	// TransparencyLogs are Rekor logs, which record signatures.
	TransparencyLogs []TransparencyLog
	// Issuers are where a person can log in. Signing clients are sent there;
	// verifiers know nothing of them.
	Issuers []Service
}

// Authority is a certificate authority or a timestamp authority.
type Authority struct {
	// Chain goes from the certificate that issues or stamps to the self-signed root.
	Chain []*x509.Certificate
	// URL is where it answers. Without one, clients only verify.
	URL string
	// Operator is who runs it, for signing clients.
	Operator string
	// Start and End bound the certificates and timestamps that are trusted, both
	// included; a zero End is open. Start is not after the first of them.
	Start, End time.Time
}

// Holds reports whether what was issued at t falls into the authority's time.
func (a *Authority) Holds(t time.Time) bool {
	return !t.Before(a.Start) && (a.End.IsZero() || !t.After(a.End))
}

// Service is something that a signing client calls.
type Service struct {
	URL        string
	Operator   string
	Start, End time.Time
	// APIVersion is the major version; zero is 1.
	APIVersion uint32
}

// TransparencyLog is a Rekor log.
type TransparencyLog struct {
	ctlog.Description // its ID is by which entries name the log: see [TransparencyLog.SetID]
	// APIVersion is 1 or 2; zero is 1.
	APIVersion uint32
	// Origin is the host that names the log in its checkpoints, where it isn't the
	// URL's. Clients take it from the URL that the trusted root has.
	Origin string
}

// Documents are the rendered documents: each one line of JSON with a final new
// line (gh reads JSON lines and drops an unterminated one), and the same bytes
// for the same history.
type Documents struct {
	TrustedRoot, SigningConfig, TrustConfig []byte
}

// services are what signing clients call, each in ascending order of start. The CA
// itself doesn't end with its authorities: others follow them.
func (h *History) services() (ca, oidc, rekor, tsa []Service) {
	for _, a := range h.Authorities {
		ca = append(ca, Service{URL: a.URL, Operator: a.Operator, Start: a.Start})
	}
	for _, l := range h.TransparencyLogs {
		rekor = append(rekor, Service{URL: l.URL, Operator: l.Operator, Start: l.Start, End: l.End, APIVersion: l.APIVersion})
	}
	for _, a := range h.TimestampAuthorities {
		tsa = append(tsa, Service{URL: a.URL, Operator: a.Operator, Start: a.Start, End: a.End})
	}
	return merged(ca), merged(h.Issuers), merged(rekor), merged(tsa)
}

// merged is one service for each URL and version, from its first start to its last
// end: an authority's key changes and its URL stays. What has no URL isn't called.
func merged(all []Service) []Service {
	var distinct []Service
	for _, s := range all {
		i := slices.IndexFunc(distinct, func(d Service) bool { return d.URL == s.URL && d.APIVersion == s.APIVersion })
		switch {
		case s.URL == "":
		case i < 0:
			distinct = append(distinct, s)
		default:
			d := &distinct[i]
			if s.Start.Before(d.Start) {
				d.Start = s.Start
			}
			if s.End.IsZero() || !d.End.IsZero() && s.End.After(d.End) {
				d.End, d.Operator = s.End, s.Operator
			}
		}
	}
	return sorted(distinct, func(s Service) time.Time { return s.Start })
}

// ordered is h as documents list it: each list in ascending order of start, and a
// log that has none from the first authority's on, since clients want one and
// nothing was logged before.
func (h History) ordered() History {
	h.Authorities = sorted(h.Authorities, startOf)
	h.TimestampAuthorities = sorted(h.TimestampAuthorities, startOf)
	h.CTLogs, h.TransparencyLogs = slices.Clone(h.CTLogs), slices.Clone(h.TransparencyLogs)
	var first time.Time
	if len(h.Authorities) > 0 {
		first = h.Authorities[0].Start
	}
	for i := range h.CTLogs {
		h.CTLogs[i].Start = cmp.Or(h.CTLogs[i].Start, first)
	}
	for i := range h.TransparencyLogs {
		h.TransparencyLogs[i].Start = cmp.Or(h.TransparencyLogs[i].Start, first)
	}
	h.CTLogs = sorted(h.CTLogs, func(l ctlog.Description) time.Time { return l.Start })
	h.TransparencyLogs = sorted(h.TransparencyLogs, func(l TransparencyLog) time.Time { return l.Start })
	return h
}

func startOf(a Authority) time.Time { return a.Start }

// sorted is a copy in ascending order.
func sorted[E any](all []E, start func(E) time.Time) []E {
	return slices.SortedStableFunc(slices.Values(all), func(a, b E) int { return start(a).Compare(start(b)) })
}

// ParseChain is a chain that comes in DER.
func ParseChain(ders [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
	}
	return certs, nil
}

// checkOrder wants a chain to end in a self-signed root, and each certificate of it
// to be signed by the next.
func checkOrder(certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return errors.New("has no certificates")
	}
	for i, c := range certs {
		var err error
		if i < len(certs)-1 {
			err = c.CheckSignatureFrom(certs[i+1])
		} else if !chain.SelfSigned(c) {
			err = errors.New("it isn't a root")
		}
		if err != nil {
			return fmt.Errorf("certificate %d isn't signed by the next, or the last by itself: %w", i, err)
		}
	}
	return nil
}

// checkIssuing wants what clients need of a certificate authority's chain: gh picks
// the verifier by the Organization, so there is one throughout.
func checkIssuing(certs []*x509.Certificate) error {
	if err := checkOrder(certs); err != nil {
		return err
	}
	for i, c := range certs {
		if !slices.Equal(c.Subject.Organization, certs[0].Subject.Organization) {
			return fmt.Errorf("certificate %d names another Organization than the first", i)
		}
	}
	return nil
}

// checkStamping wants what clients need of a timestamp authority's chain.
func checkStamping(certs []*x509.Certificate) error {
	if err := checkOrder(certs); err != nil {
		return err
	}
	leaf := certs[0]
	if len(certs) == 1 || leaf.IsCA { // sigstore-go finds no leaf otherwise, or no root
		return errors.New("begins with a CA certificate, or has nothing else: put the certificate that signs timestamps first, the root last")
	}
	if _, critical := chain.Extension(leaf, chain.OIDExtKeyUsage); !critical || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) || len(leaf.UnknownExtKeyUsage) > 0 { // RFC 3161 §2.3
		return errors.New("the first certificate's extended key usage isn't timeStamping alone, critical: reissue it so (RFC 3161 §2.3)")
	}
	for i, c := range certs[1 : len(certs)-1] {
		if len(c.ExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageTimeStamping) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return fmt.Errorf("certificate %d has extended key usages that exclude timeStamping: reissue it with it, or without any", i+1)
		}
	}
	return nil
}

// check refuses what some client would choke on.
func (h *History) check() error {
	if len(h.Authorities) == 0 {
		return errors.New("trustroot: no authority: clients could verify nothing")
	}
	if err := checkAuthorities("authority", h.Authorities, checkIssuing); err != nil {
		return err
	}
	if err := checkAuthorities("timestamp authority", h.TimestampAuthorities, checkStamping); err != nil {
		return err
	}
	seen := make(ids)
	for _, l := range h.CTLogs {
		if err := seen.add("log", l, checkLog(l)); err != nil {
			return err
		}
	}
	seen = make(ids)
	for _, l := range h.TransparencyLogs {
		if err := seen.add("transparency log", l.Description, l.check()); err != nil {
			return err
		}
	}
	for _, s := range h.Issuers {
		if s.Start.IsZero() {
			return fmt.Errorf("trustroot: service %q needs a start", s.URL)
		}
	}
	return nil
}

// ids are the logs that there are.
type ids map[[sha256.Size]byte]bool

// add adds a log, with what is wrong with it, and wants one entry for each key.
func (seen ids) add(what string, l ctlog.Description, err error) error {
	if err == nil && seen[l.ID] {
		err = errors.New("is listed twice: clients want one entry for each key")
	}
	if err != nil {
		return fmt.Errorf("trustroot: %s %s (id %x): %w", what, l.URL, l.ID, err)
	}
	seen[l.ID] = true
	return nil
}

// checkLog wants what clients identify a log by to fit its key.
func checkLog(l ctlog.Description) error {
	if _, err := ctlog.ParseKey(l.SPKI); err != nil {
		return err
	}
	if l.ID != sha256.Sum256(l.SPKI) {
		return errors.New("the id isn't the SHA-256 of its key")
	}
	return nil
}

func checkAuthorities(what string, all []Authority, check func([]*x509.Certificate) error) error {
	for i, a := range all {
		if err := check(a.Chain); err != nil {
			return fmt.Errorf("trustroot: %s %d: %w", what, i, err)
		}
		if !a.End.IsZero() && a.End.Before(a.Start) {
			return fmt.Errorf("trustroot: %s %d ends before it starts", what, i)
		}
		if a.Start.IsZero() {
			return fmt.Errorf("trustroot: %s %d has no start", what, i)
		}
	}
	return nil
}

// check wants of a Rekor log what clients find it and verify it by.
func (l TransparencyLog) check() error {
	is := l.ID
	if _, err := l.details(); err != nil {
		return err
	}
	if err := l.SetID(); err != nil {
		return err
	}
	switch {
	case is != l.ID:
		return errors.New("the id isn't that of its key")
	case l.APIVersion > 2:
		return fmt.Errorf("API version %d isn't known: 1 or 2", l.APIVersion)
	case !l.End.IsZero() && l.End.Before(l.Start):
		return errors.New("ends before it starts")
	}
	return nil
}

// Remarks are what some clients can't use in the Rekor logs of h, which are named
// after their place in the configuration.
func (h History) Remarks(path string, now time.Time) (all []string) {
	stamps := slices.ContainsFunc(h.TimestampAuthorities, func(a Authority) bool { return a.URL != "" && (a.End.IsZero() || a.End.After(now)) })
	for i, l := range h.TransparencyLogs {
		at := setting.Index(path, i)
		if l.APIVersion == 2 && !stamps && (l.End.IsZero() || l.End.After(now)) {
			all = append(all, at+": it gives no times, and no timestamp authority is listed that clients could ask: what they sign can't be verified once the certificate has expired")
		}
		if !l.isECDSA() {
			all = append(all, at+": its key isn't ECDSA: policy-controller refuses a trust root with such a Rekor, and older clients aren't told of it")
		}
	}
	return all
}

func (l *TransparencyLog) isECDSA() bool {
	public, _ := x509.ParsePKIXPublicKey(l.SPKI)
	_, ok := public.(*ecdsa.PublicKey)
	return ok
}

// The kinds of note signatures that ids of Rekor v2 are made with
// (c2sp.org/signed-note): Ed25519, and those without a number, which are named.
const (
	noteEd25519 = "\x01"
	noteRSA     = "\xffPKIX-RSA-PKCS#1v1.5"
)

// SetID sets the log's ID: the SHA-256 of its key, or in version 2 for keys other
// than ECDSA the untruncated key id of its checkpoints, which its name is part of.
func (l *TransparencyLog) SetID() error {
	public, err := x509.ParsePKIXPublicKey(l.SPKI)
	if err != nil {
		return fmt.Errorf("parsing its key: %w", err)
	}
	hashed := l.SPKI
	if l.APIVersion == 2 {
		name := l.Origin // in its checkpoints, as clients know it: a host without port
		if u, err := url.Parse(l.URL); name == "" && err == nil {
			name = u.Hostname()
		}
		switch key := public.(type) {
		case ed25519.PublicKey:
			hashed = slices.Concat([]byte(name+"\n"+noteEd25519), key)
		case *rsa.PublicKey:
			hashed = slices.Concat([]byte(name+"\n"+noteRSA), l.SPKI)
		}
	}
	l.ID = sha256.Sum256(hashed)
	return nil
}

// keyDetails are what a trusted root calls the keys of Rekor logs.
var keyDetails = map[pubkey.Algorithm]commonpb.PublicKeyDetails{
	pubkey.ECDSAP256: commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
	pubkey.ECDSAP384: commonpb.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384,
	pubkey.ECDSAP521: commonpb.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512,
	pubkey.RSA2048:   commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256,
	pubkey.RSA3072:   commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256,
	pubkey.RSA4096:   commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256,
}

// details is what a trusted root calls the log's key.
func (l *TransparencyLog) details() (commonpb.PublicKeyDetails, error) {
	public, err := x509.ParsePKIXPublicKey(l.SPKI)
	if err != nil {
		return 0, fmt.Errorf("parsing its key: %w", err)
	}
	if _, ok := public.(ed25519.PublicKey); ok {
		return commonpb.PublicKeyDetails_PKIX_ED25519, nil
	}
	algorithm, err := pubkey.AlgorithmOf(public)
	return keyDetails[algorithm], err
}
