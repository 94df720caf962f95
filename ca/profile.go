package ca

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// profile is what the certificate for who and key will say.
func (i *Issuer) profile(a *authority.Authority, who identity.Principal, key proof.Key) (*leaf, error) {
	l, err := i.newLeaf(a, key.SPKI(), who.SAN(), i.lifetimeFor(who))
	if err != nil {
		return nil, err
	}
	if err := a.Covers(l.notBefore, l.notAfter); err != nil {
		return nil, err
	}
	if err := checkSAN(l.san); err != nil {
		return nil, err
	}
	if l.extensions, err = who.Extensions().Extensions(); err != nil {
		return nil, fmt.Errorf("ca: encoding the identity's extensions: %w", err)
	}
	return l, nil
}

// newLeaf is a leaf that a issues now, with a serial number of its own.
func (i *Issuer) newLeaf(a *authority.Authority, spki []byte, san identity.SAN, lifetime time.Duration) (*leaf, error) {
	l := &leaf{spki: spki, san: san, lifetime: lifetime}
	l.notBefore, l.notAfter = a.LeafValidity(i.now(), authority.Life{Lifetime: lifetime, Backdate: i.life.Backdate})
	var err error
	if l.keyID, err = cacert.KeyID(spki); err != nil {
		return nil, err
	}
	if l.serial, err = cacert.NewSerial(i.random); err != nil {
		return nil, err
	}
	return l, nil
}

// lifetimeFor is what the issuer's policy chose for who, and the configured
// lifetime where it chose none; never longer than the issuer's bound, and never
// outside of ours.
func (i *Issuer) lifetimeFor(who identity.Principal) time.Duration {
	chosen := cmp.Or(who.Lifetime(), i.life.Lifetime)
	if most := who.MaxLifetime(); most > 0 {
		chosen = min(chosen, most)
	}
	return min(max(chosen, MinLifetime), MaxLifetime)
}

// checkSAN refuses a name that a certificate can't carry so that all verifiers
// read it alike. identity has refused these already; this is what stands
// between a mistake there and a signature.
func checkSAN(san identity.SAN) error {
	what := san.Kind.String()
	switch {
	case san.Value == "":
		return unfit(what, "is empty")
	case !utf8.ValidString(san.Value):
		return unfit(what, "isn't UTF-8")
	case strings.ContainsFunc(san.Value, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return unfit(what, "has control characters")
	}
	switch san.Kind {
	case identity.Email:
		if !ascii(san.Value) { // RFC 5280 §4.2.1.6: rfc822Name is an IA5String
			return unfit(what, "has characters outside ASCII")
		}
		if local, domain, ok := strings.Cut(san.Value, "@"); !ok || local == "" || domain == "" || strings.Contains(domain, "@") {
			return unfit(what, "isn't one mailbox of the form local@domain")
		}
	case identity.URI:
		if !ascii(san.Value) { // RFC 5280 §4.2.1.6: uniformResourceIdentifier is an IA5String
			return unfit(what, "has characters outside ASCII")
		}
		if u, err := url.Parse(san.Value); err != nil || u.Scheme == "" || !parseableHost(u.Host) {
			return unfit(what, "isn't an absolute URI with a well-formed host")
		}
	case identity.Username: // a UTF8String holds what is left
	default:
		return fmt.Errorf("ca: SAN of unknown kind %d", san.Kind)
	}
	return nil
}

func unfit(kind, why string) error {
	return fault.New(fault.ClaimInvalid, "the identity's %s %s, so no certificate can carry it", kind, why).With("claim", kind)
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// parseableHost refuses what crypto/x509 refuses to parse in a URI, so that it is
// found before a signature and not by the check after it.
func parseableHost(host string) bool {
	return host == "" || host[0] != '.' && host[len(host)-1] != '.' && !strings.Contains(host, "..") &&
		!strings.ContainsFunc(host, func(r rune) bool { return r <= 0x20 || r >= 0x7f })
}
