package oidc

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// maxTokenBytes is the longest token that is looked at.
const maxTokenBytes = 16 << 10

// Token is what a compact JWS says. Until [Keys.Verify] has checked its
// signature nothing in it may be believed: it serves to find the key, and to
// refuse early.
type Token struct {
	Algorithm string
	KeyID     string // empty where the header has none
	Claims    claim.Set
	Signed    string // what the signature is over: header and payload as they were sent
	signature string // in base64url
}

// algorithms is every signature algorithm that is accepted: the asymmetric ones
// of RFC 7518 §3.1 and RFC 8037 §3.1, but for ES256K. `none` and those with a
// shared secret can't be configured.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", edDSA}

// EdDSA has two names: RFC 8037 §3.1 named it, and RFC 9864 §2.2 renamed it for
// each of its curves, of which Ed25519 is accepted.
const (
	edDSA       = "EdDSA"
	ed25519Name = "Ed25519"
)

// CanonicalAlgorithm is an algorithm by the name that [Algorithms] has.
func CanonicalAlgorithm(name string) string {
	if name == ed25519Name {
		return edDSA
	}
	return name
}

// Algorithms lists the signature algorithms that an issuer may be configured with.
func Algorithms() []string { return slices.Clone(algorithms) }

// refusedHeaders are the header parameters that bring a key or an extension
// along (RFC 7515 §4.1, RFC 7797 §3). An ID token should use none of the first
// four (OpenID Connect Core §2), and we know no extension.
var refusedHeaders = []string{"jku", "jwk", "x5u", "x5c", "crit", "b64"}

// ParseUnverified reads a compact JWS (RFC 7515 §7.1) and checks all but its
// signature. Cheap checks come first, and nothing is allocated before the size
// is known. The errors are *fault.Error.
func ParseUnverified(token string) (Token, error) {
	switch {
	case token == "":
		return Token{}, fault.New(fault.TokenMissing, "no identity token was sent; send one as credentials.oidcIdentityToken or in the header Authorization: Bearer")
	case len(token) > maxTokenBytes:
		return Token{}, fault.New(fault.TokenTooLarge, "the identity token is longer than %d bytes", maxTokenBytes).With("limit", "16384")
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	if header == "" || payload == "" || strings.IndexByte(token, '\n') >= 0 || strings.IndexByte(token, '\r') >= 0 || !isBase64url(signature) {
		return Token{}, claim.Malformed("a compact JWS of three base64url parts is expected")
	}
	h, err := decode("header", header)
	if err != nil {
		return Token{}, err
	}
	t := Token{Algorithm: CanonicalAlgorithm(h.Get("alg").Literal()), Signed: token[:len(token)-len(signature)-1], signature: signature}
	if err := t.CheckAlgorithm(algorithms); err != nil {
		return Token{}, err
	}
	for _, name := range refusedHeaders {
		if h.Get(name).Kind() != claim.Missing {
			return Token{}, fault.New(fault.TokenMalformed, "the identity token's header has %q, which is not accepted", name)
		}
	}
	switch kid := h.Get("kid"); kid.Kind() {
	case claim.String, claim.Number: // see keyID
		t.KeyID = kid.Literal()
	case claim.Missing, claim.Null:
	default:
		return Token{}, claim.Malformed("its header's kid must be a string")
	}
	t.Claims, err = decode("payload", payload)
	return t, err
}

// CheckAlgorithm refuses a token whose algorithm isn't among those accepted.
func (t *Token) CheckAlgorithm(accepted []string) error {
	if slices.Contains(accepted, t.Algorithm) {
		return nil
	}
	return fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not accepted; accepted: %s", strings.Join(accepted, ", "))
}

// isBase64url reports whether s is of the alphabet of RFC 4648 §5, and something. What
// is decoded is held to it by the decoder, which skips line breaks alone.
func isBase64url(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// strict refuses bits that are left over, so that a token has one spelling.
var strict = base64.RawURLEncoding.Strict()

// decode reads the JSON object in the named part of a token.
func decode(part, encoded string) (claim.Set, error) {
	var space [4 << 10]byte // few parts are longer, and those cost memory
	text, err := strict.AppendDecode(space[:0], []byte(encoded))
	if err != nil {
		return claim.Set{}, claim.Malformed("its " + part + " is not base64url")
	}
	s, err := claim.Parse(string(text))
	if err != nil {
		return claim.Set{}, claim.Malformed("its " + part + ": " + err.Error())
	}
	return s, nil
}
