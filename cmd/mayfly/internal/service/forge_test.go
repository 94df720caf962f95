package service

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// forge makes a compact JWS of any header over any bytes, right or wrong. The
// header defaults to the issuer's own alg, kid and typ; a nil value leaves a
// member out. The key decides how it is signed, not the header's alg, so that
// the two can disagree:
//
//   - nil: the issuer's own key
//   - *rsa.PrivateKey: PKCS#1 v1.5, or PSS where alg begins with PS
//   - *ecdsa.PrivateKey: r and s, each of the curve's size
//   - ed25519.PrivateKey: pure Ed25519
//   - []byte: HMAC-SHA256; an empty slice leaves the signature empty
//
// The hash is the one that alg names, or else SHA-256.
func forge(t testing.TB, i *faultyIssuer, header map[string]any, payload []byte, key any) string {
	t.Helper()
	own := i.Key()
	full := map[string]any{"alg": "RS256", "kid": keyID(t, own.Public()), "typ": "JWT"}
	maps.Copy(full, header)
	maps.DeleteFunc(full, func(_ string, v any) bool { return v == nil })
	head, err := json.Marshal(full)
	if err != nil {
		t.Fatalf("the header is not JSON: %v", err)
	}
	if key == nil {
		key = own
	}
	token, err := signRaw(head, payload, fmt.Sprint(full["alg"]), key) // alg need not be a string
	if err != nil {
		t.Fatalf("%v", err)
	}
	return token
}

// signRaw is forge with the header's bytes as they are, for headers that no
// encoder would write. alg picks the hash and RSA's padding.
func signRaw(header, payload []byte, alg string, key any) (string, error) {
	encode := base64.RawURLEncoding.EncodeToString
	message := encode(header) + "." + encode(payload)
	signature, err := signature([]byte(message), alg, key)
	if err != nil {
		return "", fmt.Errorf("signing a forged token: %w", err)
	}
	return message + "." + encode(signature), nil
}

func signature(message []byte, alg string, key any) ([]byte, error) {
	hash := crypto.SHA256
	switch {
	case strings.HasSuffix(alg, "384"):
		hash = crypto.SHA384
	case strings.HasSuffix(alg, "512"):
		hash = crypto.SHA512
	}
	h := hash.New()
	h.Write(message)
	digest := h.Sum(nil)
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if strings.HasPrefix(alg, "PS") {
			return rsa.SignPSS(rand.Reader, key, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) // RFC 7518 §3.5
		}
		return rsa.SignPKCS1v15(rand.Reader, key, hash, digest)
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest)
		if err != nil {
			return nil, err
		}
		size := (key.Params().BitSize + 7) / 8 // RFC 7518 §3.4
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...), nil
	case ed25519.PrivateKey:
		return ed25519.Sign(key, message), nil
	case []byte:
		if len(key) == 0 {
			return nil, nil
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(message)
		return mac.Sum(nil), nil
	default:
		return nil, fmt.Errorf("no way to sign with a %T", key)
	}
}

// keyID is the key id that the issuer publishes the public key under.
func keyID(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	jwk := jose.JSONWebKey{Key: public}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return base64.RawURLEncoding.EncodeToString(thumbprint)
}

// A live issuer has a key of its own, so that one's token is refused by another.
func TestForgedByAnotherIssuer(t *testing.T) {
	t.Parallel()
	one, two := startIssuer(t), startIssuer(t)
	forged := forge(t, one, map[string]any{"kid": keyID(t, two.Key().Public())}, payloadOf(t, two), one.Key())
	if _, err := two.Verifier(t).Authenticate(t.Context(), forged); err == nil {
		t.Error("a token signed by another issuer's key was accepted")
	}
}

// payloadOf is the payload of a good token.
func payloadOf(t *testing.T, i *faultyIssuer) []byte {
	t.Helper()
	jws, err := jose.ParseSignedCompact(i.Token(t, nil), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	return jws.UnsafePayloadWithoutVerification()
}

// forge's tokens are well-made where they should be: the issuer's own is
// accepted, and go-jose verifies each kind of signature.
func TestForge(t *testing.T) {
	t.Parallel()
	i := startIssuer(t)
	if _, err := i.Verifier(t).Authenticate(t.Context(), forge(t, i, nil, payloadOf(t, i), nil)); err != nil {
		t.Errorf("the issuer's own token was refused: %v", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, keys := range map[jose.SignatureAlgorithm][2]any{
		jose.RS512: {i.Key(), i.Key().Public()},
		jose.PS256: {i.Key(), i.Key().Public()},
		jose.ES384: {ec, ec.Public()},
		jose.HS256: {[]byte("0123456789abcdef0123456789abcdef"), []byte("0123456789abcdef0123456789abcdef")},
	} {
		token := forge(t, i, map[string]any{"alg": alg, "kid": nil}, []byte(`{"a":1}`), keys[0])
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if payload, err := jws.Verify(keys[1]); err != nil || string(payload) != `{"a":1}` {
			t.Errorf("%s: %q, %v", alg, payload, err)
		}
	}
	if token := forge(t, i, map[string]any{"alg": "none"}, []byte(`{}`), []byte{}); !strings.HasSuffix(token, ".") {
		t.Errorf("an empty signature is %q", token)
	}
}
