package identity

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/policy"
)

// Principal is a verified identity: who the token's issuer vouched for, and
// what a certificate says about it. Only a [Verifier] makes one; the zero
// Principal is nobody, and every consumer refuses it.
type Principal struct {
	issuer     string
	issuerType Type
	subject    string
	audience   string
	san        SAN
	extensions extension.Set
	challenges []string
	choice     policy.Choice
}

// IsZero reports whether p is the zero Principal, which no Verifier returns
// without an error.
func (p Principal) IsZero() bool { return p.subject == "" || p.issuer == "" || p.san.Value == "" }

// Issuer is the issuer that the certificate records: the token's own, or the
// value of the configured issuer claim where a broker vouches for others.
func (p Principal) Issuer() string { return p.issuer }

// IssuerType is the configured type of the issuer, a bounded metric label.
func (p Principal) IssuerType() string { return string(p.issuerType) }

// Subject is the token's `sub`.
func (p Principal) Subject() string { return p.subject }

// Audience is the configured audience that the token named.
func (p Principal) Audience() string { return p.audience }

// SAN is the name that the certificate carries.
func (p Principal) SAN() SAN { return p.san }

// Extensions is what the certificate says beside the name, issuer and subject included.
func (p Principal) Extensions() extension.Set { return p.extensions }

// Challenges is the texts that a proof of possession may be a signature over:
// the token's email, where it has one, then its subject. Clients sign the
// email whenever the token has one, whatever the issuer's type.
func (p Principal) Challenges() []string { return slices.Clone(p.challenges) }

// Profile is the name of the policy's profile that chose the lifetime, or "".
func (p Principal) Profile() string { return p.choice.Profile }

// Lifetime is how long the issuer's policy says that the certificate lives;
// zero leaves it to the CA.
func (p Principal) Lifetime() time.Duration { return p.choice.Lifetime }

// MaxLifetime bounds the lifetime, the CA's own included; zero doesn't.
func (p Principal) MaxLifetime() time.Duration { return p.choice.Most }

// SANKind is the form of a subject alternative name.
type SANKind uint8

// The kinds of name; the zero SANKind is none.
const (
	Email    SANKind = iota + 1 // rfc822Name
	URI                         // uniformResourceIdentifier
	Username                    // otherName of type extension.OtherNameOID
)

var sanKinds = map[SANKind]string{Email: "email", URI: "uri", Username: "username"}

// String is "email", "uri", "username", or "" for no kind.
func (k SANKind) String() string { return sanKinds[k] }

// SAN is the one name of a certificate. Value is printable ASCII that Go and
// OpenSSL read alike: it goes into the certificate byte for byte.
type SAN struct {
	Kind  SANKind
	Value string
}
