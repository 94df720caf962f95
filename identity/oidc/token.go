package identity

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// MaxTokenBytes is the longest token that is looked at.
const MaxTokenBytes = 16 << 10

// unverified is what a token says before its signature is checked. Nothing in
// it is believed but for finding the key, and for refusing early.
type unverified struct {
	algorithm string
	keyID     string
	payload   string // the decoded JSON
	claims    claim.Set
	input     string // what the signature is over: header and payload as they were sent
	signature string // in base64url
}

// defaultAlgorithms is every asymmetric algorithm that is accepted (RFC 7518
// §3.1, RFC 8037 §3.1). `none` and the symmetric ones can't be configured.
var defaultAlgorithms = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// refusedHeaders are the header parameters that bring a key or an extension
// along (RFC 7515 §4.1, RFC 7797 §3). An ID token should use none of the first
// four (OpenID Connect Core §2), and we know no extension.
var refusedHeaders = []string{"jku", "jwk", "x5u", "x5c", "crit", "b64"}

// peek reads a compact JWS (RFC 7515 §7.1) without checking its signature.
// Cheap checks come first, and nothing is allocated before the size is known.
// The errors are *fault.Error.
func peek(token string) (unverified, error) {
	switch {
	case token == "":
		return unverified{}, fault.New(fault.TokenMissing, "no identity token was sent; send one as credentials.oidcIdentityToken or in the header Authorization: Bearer")
	case len(token) > MaxTokenBytes:
		return unverified{}, fault.New(fault.TokenTooLarge, "the identity token is longer than %d bytes", MaxTokenBytes).With("limit", "16384")
	}
	header, payload, signature, err := split(token)
	if err != nil {
		return unverified{}, err
	}
	_, h, err := decode("header", header)
	if err != nil {
		return unverified{}, err
	}
	u := unverified{
		algorithm: h.Get("alg").Literal(),
		input:     token[:len(token)-len(signature)-1],
		signature: signature,
	}
	if h.Get("alg").Kind() != claim.String || !slices.Contains(defaultAlgorithms, u.algorithm) {
		return unverified{}, errAlgorithm(defaultAlgorithms)
	}
	for _, name := range refusedHeaders {
		if h.Get(name).Kind() != claim.Missing {
			return unverified{}, fault.New(fault.TokenMalformed, "the identity token's header has %q, which is not accepted", name)
		}
	}
	switch kid := h.Get("kid"); kid.Kind() {
	case claim.String:
		u.keyID = kid.Literal()
	case claim.Missing:
	default:
		return unverified{}, malformed("its header's kid must be a string")
	}
	if u.payload, u.claims, err = decode("payload", payload); err != nil {
		return unverified{}, err
	}
	return u, nil
}

func errAlgorithm(accepted []string) error {
	return fault.New(fault.TokenAlgorithm, "the identity token's signature algorithm is not accepted; accepted: %s", strings.Join(accepted, ", "))
}

func malformed(what string) *fault.Error {
	return fault.New(fault.TokenMalformed, "the identity token can't be read: %s", what)
}

// base64url marks the bytes of the alphabet of RFC 4648 §5.
var base64url = func() (t [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		t[c] = true
	}
	return t
}()

// split takes exactly three parts of unpadded base64url, none of them empty.
func split(token string) (header, payload, signature string, err error) {
	dots := [2]int{}
	n := 0
	for i := range len(token) {
		switch c := token[i]; {
		case base64url[c]:
		case c == '.' && n < 2:
			dots[n] = i
			n++
		default:
			return "", "", "", malformed("a compact JWS of three base64url parts is expected")
		}
	}
	if n == 2 {
		header, payload, signature = token[:dots[0]], token[dots[0]+1:dots[1]], token[dots[1]+1:]
	}
	if header == "" || payload == "" || signature == "" {
		return "", "", "", malformed("a compact JWS of three base64url parts is expected")
	}
	return header, payload, signature, nil
}

func decode(part, encoded string) (string, claim.Set, error) {
	text, err := decodeText(encoded)
	if err != nil {
		return "", claim.Set{}, malformed("its " + part + " is not base64url")
	}
	s, err := claim.Parse(text)
	if err != nil {
		return "", claim.Set{}, malformed("its " + part + ": " + err.Error())
	}
	return text, s, nil
}

// decodeText decodes in pieces, so that the text is written once and for good.
func decodeText(encoded string) (string, error) {
	const piece = 1024 // a multiple of 4, so that no byte is in two pieces
	var buffer [piece / 4 * 3]byte
	var b strings.Builder
	b.Grow(base64.RawURLEncoding.DecodedLen(len(encoded)))
	for len(encoded) > 0 {
		now := encoded[:min(piece, len(encoded))]
		encoded = encoded[len(now):]
		// Strict: no bits may be left over, so a token has one spelling.
		n, err := strict.Decode(buffer[:], []byte(now))
		if err != nil {
			return "", err
		}
		b.Write(buffer[:n])
	}
	return b.String(), nil
}

var strict = base64.RawURLEncoding.Strict()
