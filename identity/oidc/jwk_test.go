package oidc

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// rsaMembers is a public key as its issuer publishes it.
func rsaMembers(k *rsa.PrivateKey) map[string]any {
	return map[string]any{"kty": "RSA", "kid": "k0", "n": base64.RawURLEncoding.EncodeToString(k.N.Bytes()), "e": "AQAB"}
}

func with(members map[string]any, changes map[string]any) map[string]any {
	all := maps.Clone(members)
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	return all
}

// TestSoundKeysInOddWrapping: what only describes a key, and how its numbers are
// spelt, doesn't keep a sound key from being used.
func TestSoundKeysInOddWrapping(t *testing.T) {
	t.Parallel()
	good := rsaMembers(key(0))
	n := key(0).N.Bytes()
	for name, c := range map[string]struct {
		set, header string
	}{
		"x5t equal to kid":            {set: keySetOf(t, with(good, map[string]any{"x5t": "k0"}))},
		"x5t of another certificate":  {set: keySetOf(t, with(good, map[string]any{"x5t": "AAAAAAAAAAAAAAAAAAAAAAAAAAA", "x5t#S256": "AA"}))},
		"x5c that isn't one":          {set: keySetOf(t, with(good, map[string]any{"x5c": []string{"not a certificate"}}))},
		"x5c as text, x5u as number":  {set: keySetOf(t, with(good, map[string]any{"x5c": "MIIB", "x5u": 5}))},
		"key_ops of another kind":     {set: keySetOf(t, with(good, map[string]any{"key_ops": "verify", "use": "sig"}))},
		"use that is null":            {set: strings.Replace(keySetOf(t, good), `"e"`, `"use":null,"e"`, 1)},
		"padded base64":               {set: keySetOf(t, with(good, map[string]any{"n": base64.URLEncoding.EncodeToString(n)}))},
		"the other base64, padded":    {set: keySetOf(t, with(good, map[string]any{"n": base64.StdEncoding.EncodeToString(n)}))},
		"a leading zero":              {set: keySetOf(t, with(good, map[string]any{"n": base64.RawURLEncoding.EncodeToString(append([]byte{0}, n...)), "e": "AAEAAQ=="}))},
		"a byte order mark":           {set: "\ufeff" + keySetOf(t, good)},
		"a numeric kid":               {set: keySetOf(t, with(good, map[string]any{"kid": 17})), header: `{"alg":"RS256","kid":17}`},
		"a numeric kid, text here":    {set: keySetOf(t, with(good, map[string]any{"kid": 17})), header: `{"alg":"RS256","kid":"17"}`},
		"text there, a numeric kid":   {set: keySetOf(t, with(good, map[string]any{"kid": "17"})), header: `{"alg":"RS256","kid":17}`},
		"no kid in the set":           {set: keySetOf(t, with(good, map[string]any{"kid": nil}))},
		"no kid in the set, two keys": {set: keySetOf(t, with(rsaMembers(key(1)), map[string]any{"kid": nil}), with(good, map[string]any{"kid": nil}))},
		"no kid in the token":         {set: keySetOf(t, good), header: `{"alg":"RS256"}`},
		"no kid in the token, two":    {set: keySetOf(t, with(rsaMembers(key(1)), map[string]any{"kid": "k1"}), good), header: `{"alg":"RS256"}`},
		"no kid anywhere":             {set: keySetOf(t, with(good, map[string]any{"kid": nil})), header: `{"alg":"RS256"}`},
		"a null kid in the token":     {set: keySetOf(t, good), header: `{"alg":"RS256","kid":null}`},
		"names in another case too":   {set: keySetOf(t, with(good, map[string]any{"KID": "other", "Use": "enc", "N": "AA"}))},
	} {
		v := publishing(t, c.set)
		header := c.header
		if header == "" {
			header = plainHeader
		}
		if _, err := v.Authenticate(t.Context(), sign(t, key(0), header, encode(t, claims(nil)))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		forged := sign(t, key(1), header, encode(t, claims(nil)))
		if _, err := v.Authenticate(t.Context(), forged); err == nil && !strings.Contains(name, "two") {
			t.Errorf("%s: took a token that another key signed", name)
		}
		if s := v.Status()[0]; !s.Ready || len(s.PassedOver) != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func keySetOf(t *testing.T, keys ...map[string]any) string {
	t.Helper()
	return encode(t, map[string]any{"keys": keys})
}

// publishing is a verifier of an issuer that publishes a text as its keys.
func publishing(t *testing.T, set string) *verifier {
	t.Helper()
	w := new(world)
	a := found(w, "https://issuer.example", "issuer.example")
	w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_, _ = rw.Write([]byte(set))
			return
		}
		_, _ = rw.Write([]byte("\ufeff")) // before discovery, too
		a.ServeHTTP(rw, r)
	}))
	v, err := newVerifier([]Config{ordinary()}, Options{Now: atMoment, Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestEllipticKeysInOddWrapping: coordinates without their leading zeros, and
// Ed25519 under both of its names.
func TestEllipticKeysInOddWrapping(t *testing.T) {
	t.Parallel()
	curves := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	for name, curve := range curves {
		k := shortCoordinate(t, curve)
		size := (curve.Params().BitSize + 7) / 8
		point, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		x, y := new(big.Int).SetBytes(point[1:1+size]), new(big.Int).SetBytes(point[1+size:])
		for _, padding := range []int{0, size, size + 1} {
			got, err := parseJWK(json.RawMessage(encode(t, map[string]any{"kty": "EC", "crv": name, "x": spelt(x, padding), "y": spelt(y, padding)})))
			if err != nil || !k.Equal(got.key) {
				t.Errorf("%s in %d bytes: %v", name, padding, err)
			}
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, published := range []any{nil, "EdDSA", "Ed25519"} {
		v := publishing(t, keySetOf(t, with(map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "k0", "x": base64.URLEncoding.EncodeToString(public)}, map[string]any{"alg": published})))
		for _, alg := range []string{"EdDSA", "Ed25519"} {
			input := b64(`{"alg":"`+alg+`","kid":"k0"}`) + "." + b64(encode(t, claims(nil)))
			if _, err := v.Authenticate(t.Context(), input+"."+b64(string(ed25519.Sign(private, []byte(input))))); err != nil {
				t.Errorf("published as %v, signed as %s: %v", published, alg, err)
			}
		}
	}
}

// spelt is a number in at least so many bytes.
func spelt(n *big.Int, size int) string {
	return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, max(size, len(n.Bytes())))))
}

// shortCoordinate is a key of which a coordinate begins with a zero byte.
func shortCoordinate(t *testing.T, curve elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	size := (curve.Params().BitSize + 7) / 8
	for {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if point[1] == 0 || point[1+size] == 0 {
			return &k.PublicKey
		}
	}
}

// TestKeysThatArePassedOverAreNamed, with the reason, wherever somebody looks; and
// nobody is told that the issuer couldn't be reached, or to get another token.
func TestKeysThatArePassedOverAreNamed(t *testing.T) {
	t.Parallel()
	for reason, c := range map[string]map[string]any{
		"1024 bits":  with(rsaMembers(key(0)), map[string]any{"n": spelt(new(big.Int).Lsh(big.NewInt(1), 1023), 0)}),
		"exponent":   with(rsaMembers(key(0)), map[string]any{"e": "Ag"}),
		"its n":      with(rsaMembers(key(0)), map[string]any{"n": nil}),
		"its e":      with(rsaMembers(key(0)), map[string]any{"e": 65537}),
		"its alg":    with(rsaMembers(key(0)), map[string]any{"alg": "HS256"}),
		"its secret": with(rsaMembers(key(0)), map[string]any{"d": "AA"}),
		"its kty":    {"kty": "AKP", "kid": "k0"},
		"its curve":  {"kty": "EC", "crv": "secp256k1", "kid": "k0", "x": "AA", "y": "AA"},
		"its point":  {"kty": "EC", "crv": "P-256", "kid": "k0", "x": "AQ", "y": "AQ"},
		"Ed25519":    {"kty": "OKP", "crv": "Ed25519", "kid": "k0", "x": "AA"},
	} {
		var told []Fetched
		usable := with(rsaMembers(key(1)), map[string]any{"kid": "k1"})
		forEncryption := with(usable, map[string]any{"kid": "k2", "use": "enc", "alg": "RSA-OAEP"})
		v := publishing(t, keySetOf(t, c, usable, forEncryption))
		v.keys[0].exact.Fetched = func(f Fetched) { told = append(told, f) }
		e := wantFault(t, v, reason, token(t, nil), fault.IssuerKeyUnusable)
		if !strings.Contains(e.Public, reason) || !strings.Contains(e.Public, `"k0"`) || strings.Contains(e.Public, "fetched") || strings.Contains(e.Public, "new token") {
			t.Errorf("%s: %q", reason, e.Public)
		}
		if _, err := v.Authenticate(t.Context(), sign(t, key(1), `{"alg":"RS256","kid":"k1"}`, encode(t, claims(nil)))); err != nil {
			t.Errorf("%s: the key beside it: %v", reason, err)
		}
		passed := v.Status()[0].PassedOver
		if len(passed) != 1 || !strings.HasPrefix(passed[0], `"k0": `) || !strings.Contains(passed[0], reason) {
			t.Errorf("%s: status %q", reason, passed)
		}
		if len(told) == 0 || !slices.Equal(told[0].PassedOver, passed) || told[len(told)-1].PassedOver != nil && len(told) > 1 {
			t.Errorf("%s: told %+v", reason, told)
		}
		probed := v.keys[0].Probe(t.Context())
		if last := probed[len(probed)-1]; last.Err != nil || !strings.Contains(last.Detail, reason) {
			t.Errorf("%s: probe %+v", reason, last)
		}

		v = publishing(t, keySetOf(t, c, forEncryption))
		e = wantFault(t, v, reason+" alone", token(t, nil), fault.IssuerKeyUnusable)
		if s := v.Status()[0]; strings.Contains(e.Public, "fetched") || s.Category() != "no usable key" || !strings.Contains(s.Err.Error(), reason) {
			t.Errorf("%s alone: %q, %+v", reason, e.Public, s)
		}
	}
}

// TestFewKeysAreTried: a set of many keys with one kid, or a token without, doesn't
// make a signature cost as many checks.
func TestFewKeysAreTried(t *testing.T) {
	t.Parallel()
	var keys []map[string]any
	for range maxTries {
		keys = append(keys, rsaMembers(key(1)))
	}
	v := publishing(t, keySetOf(t, append(keys, rsaMembers(key(0)))...))
	for _, header := range []string{plainHeader, `{"alg":"RS256"}`} {
		e := wantFault(t, v, header, sign(t, key(0), header, encode(t, claims(nil))), fault.TokenSignature)
		if !strings.Contains(e.Public, "at most 8 are tried") {
			t.Errorf("%s: %q", header, e.Public)
		}
	}
	v = publishing(t, keySetOf(t, append(keys[1:], rsaMembers(key(0)))...))
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Error(err)
	}
}

// TestKeysWithoutIDsAreFetchedAgain: where ids don't say that a key is new, the
// signature does.
func TestKeysWithoutIDsAreFetchedAgain(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, _, a := clocked(t)
		a.publish(jose.JSONWebKey{Key: key(0).Public()})
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		a.publish(jose.JSONWebKey{Key: key(1).Public()})
		if _, err := v.Authenticate(t.Context(), fresh(t, 1, "k1")); err != nil {
			t.Errorf("the new key: %v", err)
		}
		wantFault(t, v, "the old key", fresh(t, 0, "k0"), fault.TokenSignature)
	})
}

// FuzzJWKS: whatever is published, what is used can verify one algorithm at least,
// and is what go-jose reads, where it reads the set.
func FuzzJWKS(f *testing.F) {
	good, err := json.Marshal(rsaMembers(key(0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(fmt.Appendf(nil, `{"keys":[%s]}`, good))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`))
	f.Add([]byte("\ufeff" + `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","alg":"Ed25519","kid":5}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		set, err := parseJWKS(content, time.Minute)
		if err != nil {
			return
		}
		for _, k := range set.keys {
			if len(k.algorithms) == 0 || k.key == nil {
				t.Fatalf("%+v", k)
			}
		}
		var theirs jose.JSONWebKeySet
		if json.Unmarshal(content, &theirs) != nil || len(theirs.Keys) != 1 || len(set.keys) != 1 {
			return
		}
		if k, ok := set.keys[0].key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(theirs.Keys[0].Key) {
			t.Fatal("go-jose reads another key")
		}
	})
}
