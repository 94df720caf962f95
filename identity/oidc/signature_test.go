package oidc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"strings"
	"testing"

	goidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// signers makes one key for every algorithm, and how it signs.
func signers(tb testing.TB) map[string]struct {
	public crypto.PublicKey
	sign   func(input string) []byte
} {
	tb.Helper()
	type signer = struct {
		public crypto.PublicKey
		sign   func(input string) []byte
	}
	must := func(sig []byte, err error) []byte {
		if err != nil {
			tb.Fatal(err)
		}
		return sig
	}
	out := map[string]signer{}
	for _, bits := range []string{"256", "384", "512"} {
		hash := hashes[bits]
		digest := func(in string) []byte { return pubkey.Digest(hash, []byte(in)) }
		out["RS"+bits] = signer{key(0).Public(), func(in string) []byte { return must(rsa.SignPKCS1v15(nil, key(0), hash, digest(in))) }}
		out["PS"+bits] = signer{key(0).Public(), func(in string) []byte {
			return must(rsa.SignPSS(rand.Reader, key(0), hash, digest(in), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}}
		curve := map[string]elliptic.Curve{"256": elliptic.P256(), "384": elliptic.P384(), "512": elliptic.P521()}[bits]
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		out["ES"+bits] = signer{k.Public(), func(in string) []byte {
			r, s, err := ecdsa.Sign(rand.Reader, k, digest(in))
			size := (curve.Params().BitSize + 7) / 8
			return must(append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...), err)
		}}
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	out["EdDSA"] = signer{pub, func(in string) []byte { return ed25519.Sign(priv, []byte(in)) }}
	return out
}

// compact lets our keys serve go-oidc's verifier.
type compact struct{ *keySet }

func (c compact) VerifySignature(_ context.Context, token string) ([]byte, error) {
	t, err := ParseUnverified(token)
	if err != nil {
		return nil, err
	}
	if _, err := c.verify(&t); err != nil {
		return nil, err
	}
	return base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
}

// secondOpinion is go-oidc's verifier, with its own way to check a signature.
func secondOpinion(key crypto.PublicKey, algorithm string) *goidc.IDTokenVerifier {
	return goidc.NewVerifier("https://issuer.example", &goidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key}}, &goidc.Config{
		ClientID: "sigstore", SupportedSigningAlgs: []string{algorithm}, Now: atMoment,
	})
}

// TestSignaturesAgreeWithGoOIDC holds our check of every algorithm against
// go-oidc's and go-jose's, over good signatures and broken ones.
func TestSignaturesAgreeWithGoOIDC(t *testing.T) {
	t.Parallel()
	all := signers(t)
	for algorithm, s := range all {
		input := b64(`{"alg":"`+algorithm+`"}`) + "." + b64(encode(t, claims(nil)))
		good := s.sign(input)
		flipped := append([]byte(nil), good...)
		flipped[len(flipped)/2] ^= 1
		other := input[:len(input)-4] + "AAAA"
		for name, c := range map[string]struct {
			token string
			good  bool
		}{
			"good":              {input + "." + base64.RawURLEncoding.EncodeToString(good), true},
			"a bit flipped":     {input + "." + base64.RawURLEncoding.EncodeToString(flipped), false},
			"short":             {input + "." + base64.RawURLEncoding.EncodeToString(good[:len(good)-1]), false},
			"long":              {input + "." + base64.RawURLEncoding.EncodeToString(append([]byte{0}, good...)), false},
			"zeros":             {input + "." + base64.RawURLEncoding.EncodeToString(make([]byte, len(good))), false},
			"one byte":          {input + ".AA", false},
			"another's input":   {input + "." + base64.RawURLEncoding.EncodeToString(s.sign(other)), false},
			"ASN.1, not r || s": {input + "." + base64.RawURLEncoding.EncodeToString(asn1Of(t, algorithm, good)), false},
		} {
			ours := compact{&keySet{jwks: jwks{keys: []jwk{{algorithms: []string{algorithm}, key: s.public}}}}}
			_, err := ours.VerifySignature(t.Context(), c.token)
			if (err == nil) != c.good {
				t.Errorf("%s, %s: %v", algorithm, name, err)
			}
			if _, err := secondOpinion(s.public, algorithm).Verify(t.Context(), c.token); (err == nil) != c.good {
				t.Errorf("%s, %s: go-oidc says %v", algorithm, name, err)
			}
			// Our key set serves go-oidc's verifier as well.
			theirs := goidc.NewVerifier("https://issuer.example", ours, &goidc.Config{ClientID: "sigstore", SupportedSigningAlgs: []string{algorithm}, Now: atMoment})
			if _, err := theirs.Verify(t.Context(), c.token); (err == nil) != c.good {
				t.Errorf("%s, %s: go-oidc with our keys says %v", algorithm, name, err)
			}
		}
		// No key verifies anything by the name of another key's algorithm.
		token := input + "." + base64.RawURLEncoding.EncodeToString(good)
		u, err := ParseUnverified(token)
		if err != nil {
			t.Fatal(err)
		}
		for wrong, o := range all {
			if wrong == algorithm {
				continue
			}
			for _, k := range []crypto.PublicKey{s.public, o.public} {
				if verifySignature(wrong, k, u.Signed, good) {
					t.Errorf("%s: verified as %s", algorithm, wrong)
				}
			}
		}
		if _, err := (&keySet{jwks: jwks{keys: []jwk{{algorithms: []string{"RS999"}, key: s.public}}}}).verify(&u); err == nil {
			t.Errorf("%s: keys that were chosen by another algorithm", algorithm)
		}
	}
	if verifySignature("RS256", "no key", "", nil) {
		t.Error("a key of no known type")
	}
}

// asn1Of is an ECDSA signature in the form that JOSE doesn't use.
func asn1Of(t *testing.T, algorithm string, sig []byte) []byte {
	t.Helper()
	if !strings.HasPrefix(algorithm, "ES") {
		return append([]byte{0x30, byte(len(sig) % 128)}, sig...)
	}
	half := len(sig) / 2
	return append(append([]byte{0x30, byte(len(sig) + 4), 2, byte(half)}, sig[:half]...), append([]byte{2, byte(half)}, sig[half:]...)...)
}

// FuzzSignature: what we take go-oidc takes, and reads alike.
func FuzzSignature(f *testing.F) {
	good := token(f, nil)
	f.Add(good)
	f.Add(good[:len(good)-2])
	f.Add(strings.Replace(good, ".", "..", 1))
	ours := compact{&keySet{jwks: jwks{keys: []jwk{{algorithms: []string{"RS256"}, key: key(0).Public()}}}}}
	theirs := &goidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key(0).Public()}}
	f.Fuzz(func(t *testing.T, token string) {
		payload, err := ours.VerifySignature(t.Context(), token)
		if err != nil {
			return
		}
		if want, err := theirs.VerifySignature(t.Context(), token); err != nil || string(want) != string(payload) {
			t.Fatalf("go-oidc: %v", err)
		}
	})
}
