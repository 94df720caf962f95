package oidc

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// RSA keys that are accepted (RFC 7518 §3.3; above, one check gets slow).
const (
	minRSABits     = 2048
	maxRSABits     = 8192
	maxRSAExponent = 1<<31 - 1 // what crypto/rsa takes
)

// jwk is a key out of a set (RFC 7517 §4) that can verify signatures.
type jwk struct {
	id         string // empty where it has none
	algorithms []string
	key        crypto.PublicKey
}

// errNoSignatures says that a key is there for something else than signatures,
// which is no fault of it.
var errNoSignatures = errors.New("isn't for signatures")

// parseJWK reads a key by the members that make it. The others (x5t, x5c, key_ops
// and so on) only describe it, and issuers get them wrong; go-jose refuses the key
// then, and spellings such as padded base64. The id is also good beside an error.
func parseJWK(raw json.RawMessage) (k jwk, err error) {
	var members map[string]json.RawMessage // unlike a struct's fields, names of one case
	if err := json.Unmarshal(raw, &members); err != nil {
		return k, errors.New("it isn't a JSON object")
	}
	if k.id, err = keyID(members["kid"]); err != nil {
		return k, err
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(members[name], &s) // "" where it is no text
		return s
	}
	kind, use := text("kty"), text("use")
	switch {
	case use != "" && use != "sig":
		return k, errNoSignatures
	case members["d"] != nil || members["k"] != nil:
		return k, errors.New("its secret is published with it")
	}
	var can []string
	switch kind {
	case "RSA":
		k.key, err = rsaKey(text("n"), text("e"))
		can = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case "EC":
		k.key, can, err = ecKey(text("crv"), text("x"), text("y"))
	case "OKP":
		k.key, err = okpKey(text("crv"), text("x"))
		can = []string{edDSA}
	default:
		err = fmt.Errorf("its kty %s is unknown", claim.Quote(kind))
	}
	switch named := CanonicalAlgorithm(text("alg")); {
	case err != nil:
		return k, err
	case named == "":
		k.algorithms = can
	case slices.Contains(can, named):
		k.algorithms = []string{named}
	default:
		return k, fmt.Errorf("its alg %s isn't one that its type can verify", claim.Quote(named))
	}
	return k, nil
}

// keyID is the text of a kid. Some issuers write a number, in their tokens too.
func keyID(raw json.RawMessage) (string, error) {
	var id string
	var number json.Number
	switch {
	case raw == nil || bytes.Equal(raw, []byte("null")) || json.Unmarshal(raw, &id) == nil:
		return id, nil
	case json.Unmarshal(raw, &number) == nil:
		return number.String(), nil
	default:
		return "", errors.New("its kid is neither text nor a number")
	}
}

// octets reads base64url (RFC 7518 §2), also with padding or in the other alphabet.
func octets(name, text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(text), "="))
	if err != nil || len(b) == 0 {
		return nil, fmt.Errorf("its %s is missing or not base64url", name)
	}
	return b, nil
}

func rsaKey(n, e string) (crypto.PublicKey, error) {
	modulus, err := octets("n", n)
	exponent, eErr := octets("e", e)
	if err := cmp.Or(err, eErr); err != nil {
		return nil, err
	}
	k := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus)}
	power := new(big.Int).SetBytes(exponent)
	switch bits := k.N.BitLen(); {
	case bits < minRSABits || bits > maxRSABits:
		return nil, fmt.Errorf("its modulus has %d bits; %d to %d are accepted", bits, minRSABits, maxRSABits)
	case power.Bit(0) == 0 || power.Cmp(big.NewInt(3)) < 0 || power.Cmp(big.NewInt(maxRSAExponent)) > 0:
		return nil, errors.New("its exponent is even or out of range")
	}
	k.E = int(power.Int64())
	return k, nil
}

// ecKey takes coordinates with leading zeros left out, too (RFC 7518 §6.2.1.2 wants them).
func ecKey(crv, x, y string) (crypto.PublicKey, []string, error) {
	i := slices.IndexFunc(pubkey.Curves, func(c pubkey.Curve) bool { return c.Params().Name == crv })
	if i < 0 {
		return nil, nil, fmt.Errorf("its curve %s isn't accepted", claim.Quote(crv))
	}
	c := pubkey.Curves[i]
	size := (c.Params().BitSize + 7) / 8
	point := []byte{4} // SEC 1 §2.3.3: uncompressed
	for _, coordinate := range []struct{ name, text string }{{"x", x}, {"y", y}} {
		b, err := octets(coordinate.name, coordinate.text)
		if err != nil {
			return nil, nil, err
		}
		v := new(big.Int).SetBytes(b)
		if v.BitLen() > 8*size {
			return nil, nil, fmt.Errorf("its %s is longer than its curve's", coordinate.name)
		}
		point = append(point, v.FillBytes(make([]byte, size))...)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(c.Curve, point)
	if err != nil {
		return nil, nil, errors.New("its point isn't on its curve")
	}
	return k, []string{"ES" + strconv.Itoa(8*c.Hash.Size())}, nil // RFC 7518 §3.4: one curve an algorithm
}

func okpKey(crv, x string) (crypto.PublicKey, error) {
	if crv != ed25519Name {
		return nil, fmt.Errorf("its curve %s isn't accepted", claim.Quote(crv))
	}
	b, err := octets("x", x)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New("its x isn't an Ed25519 key")
	}
	return ed25519.PublicKey(b), nil
}
