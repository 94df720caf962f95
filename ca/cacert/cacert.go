// Package ceremony makes the certificates of certificate authorities: roots, and
// the intermediates below them. It is the one maker of them, whether the keys are
// in files, in a KMS, in an HSM, or on a machine that no network reaches.
//
// A ceremony goes one way: [New] says what the certificate will say and refuses
// what can't come out well; [Ceremony.For] takes the key that it is for;
// [Ceremony.Print] shows a person what is about to be signed; [Ceremony.Sign]
// signs it and checks what was signed; [Certificate.Write] writes it beside the
// record of how it came about.
package ceremony

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/proof"
)

// The validities that are chosen where none is stated. The root is kept offline
// and outlives two intermediates; clients trust what it signs by its window in
// the trust root.
const (
	RootLifetime         = 10 * 365 * Day
	IntermediateLifetime = 5 * 365 * Day
	Day                  = 24 * time.Hour
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
	// Lifetime, both ends included; zero is RootLifetime or IntermediateLifetime,
	// shortened to end with the issuer. A stated one is never shortened.
	Lifetime time.Duration
	// PathLength is how many CA certificates may come below this one: 0 for one
	// that issues leaves, 1 for one that certifies issuing CAs. A root's is at
	// least 1, or Unlimited.
	PathLength int
}

// Circumstances are when, where and before whom a ceremony is held.
type Circumstances struct {
	Now       time.Time
	Host      string   // name of the machine; may be empty
	Tool      string   // program and version
	Witnesses []string // names of those who were there
}

// Key is a private key that signs, and the words to record it by.
type Key struct {
	crypto.Signer
	Ref string // its reference in canonical form; never a secret
}

// Of reports whether k is the key of a certificate.
func (k Key) Of(c *x509.Certificate) bool {
	public, ok := c.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && public.Equal(k.Public())
}

// Ceremony is a certificate that is to be signed.
type Ceremony struct {
	at       Circumstances
	parent   []*x509.Certificate // the issuer's chain, issuer first; none for a root
	below    int                 // how many CA certificates are expected below it
	template *x509.Certificate
	notes    []string // what was decided on the way, for the person and the record
	keyRef   string
	request  *Request // what the key came in, or nil
}

// New decides what a certificate will say. parent is the chain of its issuer,
// root last; with none, it is a root. The error has a line for each reason why
// the certificate can't be made.
func New(parent []*x509.Certificate, p Profile, at Circumstances) (*Ceremony, error) {
	c := &Ceremony{at: at, parent: parent, below: max(p.PathLength, 0)}
	c.at.Now = at.Now.UTC().Truncate(time.Second)
	c.template = &x509.Certificate{
		NotBefore:             c.at.Now,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	var f faults
	c.bound(p, &f)
	c.name(p, &f)
	c.live(p, &f)
	return c, f.err()
}

// bound sets path length and extended key usage, and asks whether the issuer may
// certify that.
func (c *Ceremony) bound(p Profile, f *faults) {
	c.template.MaxPathLen, c.template.MaxPathLenZero = p.PathLength, p.PathLength == 0
	if len(c.parent) == 0 {
		if p.PathLength == Unlimited {
			c.below = 1
		} else if p.PathLength < 1 {
			f.add("a root of path length %d could certify no intermediate: state 1 or more, or none", p.PathLength)
		}
		return
	}
	if p.PathLength < 0 || p.PathLength > chain.MaxLength {
		f.add("an intermediate states its path length: 0 for one that issues, 1 for one that certifies issuing CAs")
		return
	}
	c.template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	chain.Check(c.parent, chain.Need{Now: c.at.Now, Below: p.PathLength + 1}, func(format string, args ...any) {
		f.add("the issuer's chain: "+format, args...)
	})
	if len(c.parent) == chain.MaxLength {
		f.add("the issuer's chain has %d certificates already, and no longer one is read", chain.MaxLength)
	}
}

// name makes the subject. RFC 5280 appendix A.1 bounds both parts to 64 characters.
func (c *Ceremony) name(p Profile, f *faults) {
	kind := "root"
	if len(c.parent) > 0 {
		kind = "intermediate"
		root := c.parent[len(c.parent)-1].Subject.Organization
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
		if p.CommonName = p.Organization + " " + kind; utf8.RuneCountInString(p.CommonName) > maxName {
			p.CommonName = kind
		}
	}
	checkName("the organization", p.Organization, f)
	checkName("the common name", p.CommonName, f)
	c.template.Subject = pkix.Name{Organization: []string{p.Organization}, CommonName: p.CommonName}
	for _, parent := range c.parent {
		if parent.Subject.String() == c.template.Subject.String() {
			f.add("the issuer is called %s too, and verifiers find issuers by their names: choose another common name", chain.Subject(parent))
			return
		}
	}
}

const maxName = 64

func checkName(what, name string, f *faults) {
	switch {
	case strings.TrimSpace(name) == "":
		f.add("%s is empty", what)
	case strings.TrimSpace(name) != name:
		f.add("%s begins or ends in a space: %q", what, name)
	case utf8.RuneCountInString(name) > maxName:
		f.add("%s is longer than %d characters (RFC 5280 appendix A.1)", what, maxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		f.add("%s has characters that can't be printed: %q", what, name)
	}
}

// live sets the end of the validity: never beyond any issuer's.
func (c *Ceremony) live(p Profile, f *faults) {
	lifetime, stated := p.Lifetime, p.Lifetime != 0
	if !stated {
		lifetime = RootLifetime
		if len(c.parent) > 0 {
			lifetime = IntermediateLifetime
		}
	}
	if lifetime < Day || lifetime > maxLifetime {
		f.add("a validity of %v: state from 1 day to %d days", lifetime, maxLifetime/Day)
		return
	}
	// RFC 5280 §4.1.2.5: both ends belong to the validity.
	c.template.NotAfter = c.at.Now.Add(lifetime - time.Second)
	for _, parent := range c.parent {
		if !parent.NotAfter.Before(c.template.NotAfter) {
			continue
		}
		if stated {
			f.add("the certificate would outlive %s, which ends at %s: state at most %d days, or renew the issuer first",
				chain.Subject(parent), stamp(parent.NotAfter), parent.NotAfter.Sub(c.at.Now)/Day)
			return
		}
		c.template.NotAfter = parent.NotAfter
		c.note("the validity is shortened to end with %s", chain.Subject(parent))
	}
	if c.template.NotAfter.Sub(c.at.Now) < Day-time.Second && len(c.parent) > 0 {
		f.add("the issuer ends at %s, too soon for anything below it: renew it first", stamp(c.template.NotAfter))
	}
}

func (c *Ceremony) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(c.notes, n) {
		c.notes = append(c.notes, n)
	}
}

// For names the key that the certificate is for. It refuses one that is weak,
// that no client takes, or that is a key of the issuer's chain. ref is the words
// to record it by.
func (c *Ceremony) For(public crypto.PublicKey, ref string) error {
	spki, err := fit(public)
	if err != nil {
		return err
	}
	for _, parent := range c.parent {
		if bytes.Equal(parent.RawSubjectPublicKeyInfo, spki) {
			return fmt.Errorf("the key is that of %s already: an intermediate has a key of its own", chain.Subject(parent))
		}
	}
	c.template.PublicKey, c.keyRef = public, ref
	c.template.RawSubjectPublicKeyInfo = spki
	return nil
}

// ForRequest is For with the key of a request. Whatever else the request asks
// for is noted and ignored.
func (c *Ceremony) ForRequest(r *Request) error {
	if err := c.For(r.public, "of the certificate request"); err != nil {
		return err
	}
	c.request = r
	return nil
}

// fit is a public key's SubjectPublicKeyInfo when a CA may have it.
func fit(public crypto.PublicKey) ([]byte, error) {
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
	return spki, plain(policy.Strong(spki))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// faults are all that is wrong, a line each.
type faults []error

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }
func (f faults) err() error                      { return errors.Join(f...) }
