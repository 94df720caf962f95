// Package revocation says whether a certificate was revoked, by the list (CRL, RFC 5280
// §5) of the authority that issued it. It is for verifiers, offline ones too, and
// imports nothing but the standard library; package guard puts it into sigstore-go's
// verifier.
//
// A certificate that is listed is invalid, whatever the list says of dates and whenever
// something was signed with it: its key was in the wrong hands, and who signs with it
// can have the signature's time say what it likes. A certificate that isn't listed is
// taken only by a list that would list it: whole, of its authority, and fresh.
package revocation

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Kind is a reason to refuse, in a word for programs.
type Kind string

// The reasons to refuse.
const (
	Revoked        Kind = "revoked"         // the certificate is listed
	Missing        Kind = "missing"         // there is no list of the authority
	Malformed      Kind = "malformed"       // it isn't a list, or not all of one
	OtherIssuer    Kind = "other-issuer"    // the list is of another authority
	WrongSignature Kind = "wrong-signature" // the authority's key didn't sign the list
	Incomplete     Kind = "incomplete"      // the list may leave out the certificate
	NotYetValid    Kind = "not-yet-valid"   // the list is from the future
	Stale          Kind = "stale"           // the authority has made another since
	Older          Kind = "older"           // a list with a higher number was seen before
)

// Refusal is why a certificate isn't taken. Every error of this package is one.
type Refusal struct {
	Kind  Kind
	Words string // what is wrong, and what to do
	// Entry is the certificate's where Kind is Revoked.
	Entry *x509.RevocationListEntry
}

func (r *Refusal) Error() string { return r.Words }

// Is makes errors.Is(err, &Refusal{Kind: Revoked}) ask for a kind.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Kind == r.Kind
}

func refuse(k Kind, format string, args ...any) *Refusal {
	return &Refusal{Kind: k, Words: fmt.Sprintf(format, args...)}
}

// List is a list that was read. Nothing of it is verified before [List.Check].
type List struct{ crl *x509.RevocationList }

// MaxBytes bounds what Parse reads: 100,000 entries have 8 MB.
const MaxBytes = 64 << 20

// Extensions of lists (RFC 5280 §5.2, X.509 §9.5.2.8).
var (
	oidDeltaIndicator      = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistribution = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidExpiredCertsOnCRL   = asn1.ObjectIdentifier{2, 5, 29, 60}
)

// Parse reads one list, in DER or PEM.
func Parse(b []byte) (*List, error) {
	if len(b) > MaxBytes {
		return nil, refuse(Malformed, "the list has more than %d bytes", MaxBytes)
	}
	if block, rest := pem.Decode(b); block != nil {
		if block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, refuse(Malformed, "the file has something else in it than one list, BEGIN X509 CRL")
		}
		b = block.Bytes
	}
	crl, err := x509.ParseRevocationList(b)
	if err != nil || crl.Number == nil || len(crl.Raw) != len(b) {
		return nil, refuse(Malformed, "that isn't the whole of a revocation list with a number (a CRL of version 2, in DER or PEM): get it anew")
	}
	return &List{crl}, nil
}

// Authority is the key id of the authority whose list it says to be, in hexadecimal:
// lists are named after it.
func (l *List) Authority() string { return hex.EncodeToString(l.crl.AuthorityKeyId) }

// Terms are what a verifier asks of a list.
type Terms struct {
	// Now is the verifier's own time. A signature's would let an old list count.
	Now time.Time
	// Known is the highest number of the authority's lists that was seen before; nil
	// for none.
	Known *big.Int
	// Stale hears of a list that is stale, which then counts all the same; where it is
	// nil such a list is refused.
	Stale func(*Refusal)
}

// skew is how far the authority's clock may be ahead.
const skew = 5 * time.Minute

// Check is nil when l says that the certificate isn't revoked. The issuer is the
// certificate that a verified chain has above it. Every error is a *[Refusal].
func (l *List) Check(certificate, issuer *x509.Certificate, t Terms) error {
	if r := l.of(issuer); r != nil {
		return r
	}
	if r := l.whole(certificate); r != nil {
		return r
	}
	if i := slices.IndexFunc(l.crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(certificate.SerialNumber) == 0
	}); i >= 0 {
		entry := l.crl.RevokedCertificateEntries[i]
		r := refuse(Revoked, "the certificate %x is revoked (reason code %d): nothing that was ever signed with it counts", certificate.SerialNumber, entry.ReasonCode)
		r.Entry = &entry
		return r
	}
	switch crl := l.crl; {
	case t.Known != nil && crl.Number.Cmp(t.Known) < 0:
		return refuse(Older, "the list has number %d, and number %d of the same authority was seen before: get the newest", crl.Number, t.Known)
	case crl.ThisUpdate.After(t.Now.Add(skew)):
		return refuse(NotYetValid, "the list was made at %s, which is ahead of this machine's clock: correct the clock", stamp(crl.ThisUpdate))
	case !t.Now.Before(crl.NextUpdate):
		r := refuse(Stale, "the list is stale: there was to be another by %s; get the newest", stamp(crl.NextUpdate))
		if t.Stale == nil {
			return r
		}
		t.Stale(r)
	}
	return nil
}

// of is nil when the issuer has signed the list.
func (l *List) of(issuer *x509.Certificate) *Refusal {
	key := issuer.SubjectKeyId
	if len(key) == 0 || !bytes.Equal(l.crl.AuthorityKeyId, key) || !bytes.Equal(l.crl.RawIssuer, issuer.RawSubject) {
		return refuse(OtherIssuer, "the list is of another authority (key id %x) than the certificate (%x): get that one's", l.crl.AuthorityKeyId, key)
	}
	if l.crl.CheckSignatureFrom(issuer) != nil {
		return refuse(WrongSignature, "the authority's key, with the right to sign lists, hasn't signed the list: get it anew, and ask the operator of the CA if it stays so")
	}
	return nil
}

// whole is nil when the list would list the certificate.
func (l *List) whole(certificate *x509.Certificate) *Refusal {
	var kept time.Time // since when those stay that have expired
	for _, e := range l.crl.Extensions {
		switch {
		case e.Critical, e.Id.Equal(oidDeltaIndicator), e.Id.Equal(oidIssuingDistribution):
			return refuse(Incomplete, "the list has the extension %s, so it may be a part of a list or mean another thing: get the complete list", e.Id)
		case e.Id.Equal(oidExpiredCertsOnCRL):
			if rest, err := asn1.Unmarshal(e.Value, &kept); err != nil || len(rest) > 0 {
				return refuse(Malformed, "the list's extension %s isn't a time: get it anew", e.Id)
			}
		}
	}
	for i := range l.crl.RevokedCertificateEntries {
		for _, e := range l.crl.RevokedCertificateEntries[i].Extensions {
			if e.Critical { // of another issuer's certificate, for one (RFC 5280 §5.3.3)
				return refuse(Incomplete, "an entry of the list has the critical extension %s: get a list of this authority alone", e.Id)
			}
		}
	}
	if expired := certificate.NotAfter; expired.Before(l.crl.ThisUpdate) && (kept.IsZero() || kept.After(expired)) {
		return refuse(Incomplete, "the list leaves out certificates that have expired, as this one had when it was made: get one that keeps them (expiredCertsOnCRL)")
	}
	return nil
}

// Source has the list of an authority, by its key id in hexadecimal. Where it has none,
// its error is that of [NoList].
type Source func(authority string) (*List, error)

// From is a source of lists that are at hand.
func From(lists ...*List) Source {
	return func(authority string) (*List, error) {
		if i := slices.IndexFunc(lists, func(l *List) bool { return l.Authority() == authority }); i >= 0 {
			return lists[i], nil
		}
		return nil, NoList(authority)
	}
}

// NoList is the refusal of a certificate whose authority has no list at hand.
func NoList(authority string) *Refusal {
	return refuse(Missing, "there is no list of the authority with the key id %s, which issued the certificate: get it from the CA (/crl/%[1]s.crl)", authority)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
