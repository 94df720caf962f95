package proof

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	encodingasn1 "encoding/asn1"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Every accepted kind of key, in both encodings, over either challenge.
func TestSignatureAccepts(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	for _, k := range acceptedKeys() {
		t.Run(k.algorithm, func(t *testing.T) {
			t.Parallel()
			der := spkiOf(t, k.signer.Public())
			text := toPEM("PUBLIC KEY", der)
			for name, spki := range map[string][]byte{
				"DER":            der,
				"PEM":            text,
				"PEM with CRLF":  bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")),
				"PEM, no end":    bytes.TrimRight(text, "\n"),
				"PEM and blanks": append([]byte("\n  "), append(bytes.Clone(text), " \r\n\t\n"...)...),
			} {
				for _, challenge := range challenges {
					key, err := policy.signature(spki, prove(t, k.signer, challenge), challenges)
					if err != nil {
						t.Fatalf("%s over %s: %v", name, challenge, err)
					}
					checkKey(t, key, k)
				}
			}
		})
	}
}

// checkKey checks that the key says what it should, in its canonical encoding.
func checkKey(t *testing.T, key Key, want testKey) {
	t.Helper()
	if key.IsZero() {
		t.Error("the key is zero")
	}
	if key.Algorithm() != want.algorithm {
		t.Errorf("algorithm %q, want %q", key.Algorithm(), want.algorithm)
	}
	if !bytes.Equal(key.SPKI(), spkiOf(t, want.signer.Public())) {
		t.Errorf("SPKI %x differs from the key's", key.SPKI())
	}
	type equaler interface{ Equal(crypto.PublicKey) bool }
	if public, ok := key.Public().(equaler); !ok || !public.Equal(want.signer.Public()) {
		t.Errorf("Public is %v", key.Public())
	}
	key.SPKI()[0] ^= 0xff
	if !bytes.Equal(key.SPKI(), spkiOf(t, want.signer.Public())) {
		t.Error("writing to what SPKI returned changed the key")
	}
}

// A principal from a real verifier, by its email and by its subject.
func TestSignatureOfPrincipal(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	signer := acceptedKey(t, "ECDSA-P256")
	spki := toPEM("PUBLIC KEY", spkiOf(t, signer.Public()))
	who := identitytest.Principal(t, map[string]any{"email": email, "sub": "alice"})
	for _, text := range []string{email, "alice"} {
		if _, err := policy.Signature(spki, prove(t, signer, text), who); err != nil {
			t.Errorf("over %q: %v", text, err)
		}
	}
	_, err := policy.Signature(spki, prove(t, signer, "mallory@example.com"), who)
	wantFault(t, err, fault.ProofInvalid, email, "mallory")
}

// The zero values prove nothing.
func TestZeroValues(t *testing.T) {
	t.Parallel()
	if k := (Key{}); !k.IsZero() || k.Algorithm() != "" || k.SPKI() != nil || k.Public() != nil {
		t.Errorf("the zero Key says something: %+v", k)
	}
	signer := acceptedKey(t, "ECDSA-P256")
	_, err := newPolicy(t).Signature(spkiOf(t, signer.Public()), prove(t, signer, ""), identity.Principal{})
	if err == nil || fault.From(err).Kind() != fault.Internal {
		t.Errorf("a zero principal gave %v, want an unclassified error", err)
	}
}

// Proofs that prove nothing.
func TestProofsThatProveNothingAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	other := map[string]crypto.Signer{}
	for _, k := range acceptedKeys() {
		other[k.algorithm] = acceptedKey(t, map[bool]string{true: "ECDSA-P384", false: "ECDSA-P256"}[k.algorithm == "ECDSA-P256"])
	}
	for _, k := range acceptedKeys() {
		t.Run(k.algorithm, func(t *testing.T) {
			t.Parallel()
			spki := spkiOf(t, k.signer.Public())
			good := prove(t, k.signer, email)
			flipped := bytes.Clone(good)
			flipped[len(flipped)-1] ^= 1
			for name, c := range map[string]struct {
				sig  []byte
				want fault.Reason
			}{
				"another key":        {prove(t, other[k.algorithm], email), fault.ProofInvalid},
				"another text":       {prove(t, k.signer, "mallory@example.com"), fault.ProofInvalid},
				"text with new line": {prove(t, k.signer, email+"\n"), fault.ProofInvalid},
				"over nothing":       {prove(t, k.signer, ""), fault.ProofInvalid},
				"missing":            {nil, fault.ProofMissing},
				"empty":              {[]byte{}, fault.ProofMissing},
				"one byte":           {[]byte{0}, fault.ProofInvalid},
				"1 MiB":              {make([]byte, 1<<20), fault.ProofTooLarge},
				"over the limit":     {make([]byte, MaxProofBytes+1), fault.ProofTooLarge},
				"at the limit":       {make([]byte, MaxProofBytes), fault.ProofInvalid},
				"trailing byte":      {append(bytes.Clone(good), 0), fault.ProofInvalid},
				"leading byte":       {append([]byte{0}, good...), fault.ProofInvalid},
				"truncated":          {good[:len(good)-1], fault.ProofInvalid},
				"bit flipped":        {flipped, fault.ProofInvalid},
				"zeros":              {make([]byte, len(good)), fault.ProofInvalid},
				"PEM":                {toPEM("SIGNATURE", good), fault.ProofInvalid},
			} {
				key, err := policy.signature(spki, c.sig, challenges)
				if !key.IsZero() {
					t.Errorf("%s: a key came with the error", name)
				}
				t.Run(name, func(t *testing.T) { wantFault(t, err, c.want, email) })
			}
		})
	}
}

// An empty challenge is never proven, and no challenge neither.
func TestEmptyChallengeIsNeverProven(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	for _, k := range acceptedKeys() {
		for _, none := range [][]string{nil, {}, {""}, {"", ""}} {
			_, err := policy.signature(spkiOf(t, k.signer.Public()), prove(t, k.signer, ""), none)
			wantFault(t, err, fault.ProofInvalid)
		}
	}
}

// ECDSA signatures with numbers out of range or in another encoding.
func TestECDSASignaturesInOtherEncodingsAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	for _, algorithm := range []string{"ECDSA-P256", "ECDSA-P384", "ECDSA-P521"} {
		signer := acceptedKey(t, algorithm)
		var rs struct{ R, S *big.Int }
		if _, err := encodingasn1.Unmarshal(prove(t, signer, email), &rs); err != nil {
			t.Fatal(err)
		}
		n := curveOrder(t, algorithm)
		zero := new(big.Int)
		pair := func(r, s *big.Int) []byte {
			der, err := encodingasn1.Marshal(struct{ R, S *big.Int }{r, s})
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
		size := (n.BitLen() + 7) / 8
		padded := append([]byte{0, 0}, rs.R.Bytes()...)
		for name, sig := range map[string][]byte{
			"r = 0":         pair(zero, rs.S),
			"s = 0":         pair(rs.R, zero),
			"both 0":        pair(zero, zero),
			"r = n":         pair(n, rs.S),
			"s = n":         pair(rs.R, n),
			"r + n":         pair(new(big.Int).Add(rs.R, n), rs.S),
			"s + n":         pair(rs.R, new(big.Int).Add(rs.S, n)),
			"r negative":    pair(new(big.Int).Neg(rs.R), rs.S),
			"s negative":    pair(rs.R, new(big.Int).Neg(rs.S)),
			"raw r and s":   append(rs.R.FillBytes(make([]byte, size)), rs.S.FillBytes(make([]byte, size))...),
			"three numbers": sequence(t, integer(rs.R.Bytes()), integer(rs.S.Bytes()), integer([]byte{1})),
			"not minimal":   sequence(t, integer(padded), integer(append([]byte{0, 0}, rs.S.Bytes()...))),
		} {
			_, err := policy.signature(spkiOf(t, signer.Public()), sig, challenges)
			t.Run(algorithm+"/"+name, func(t *testing.T) { wantFault(t, err, fault.ProofInvalid) })
		}
	}
}

func curveOrder(t *testing.T, algorithm string) *big.Int {
	t.Helper()
	for _, c := range pubkey.Curves {
		if c.Algorithm == algorithm {
			return c.Params().N
		}
	}
	t.Fatalf("no curve %s", algorithm)
	return nil
}

// integer and sequence write DER as it is told, right or wrong.
func integer(content []byte) encodingasn1.RawValue {
	return encodingasn1.RawValue{Tag: encodingasn1.TagInteger, Bytes: content}
}

func sequence(t testing.TB, elements ...encodingasn1.RawValue) []byte {
	t.Helper()
	var body []byte
	for _, e := range elements {
		der, err := encodingasn1.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, der...)
	}
	der, err := encodingasn1.Marshal(encodingasn1.RawValue{Tag: encodingasn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Each key has one hash and one scheme, and no other is read.
func TestSignaturesOfOtherAlgorithmsAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	for _, k := range acceptedKeys() {
		own := hashOf(t, k.signer.Public())
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			if hash == own || own == 0 {
				continue
			}
			_, err := policy.signature(spkiOf(t, k.signer.Public()), sign(t, k.signer, email, hash), challenges)
			t.Run(k.algorithm+"/"+hash.String(), func(t *testing.T) { wantFault(t, err, fault.ProofInvalid) })
		}
	}
	t.Run("PSS", func(t *testing.T) {
		t.Parallel()
		signer := acceptedKey(t, "RSA-2048")
		digest := sha256.Sum256([]byte(email))
		sig, err := signer.Sign(rand.Reader, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash})
		if err != nil {
			t.Fatal(err)
		}
		_, err = policy.signature(spkiOf(t, signer.Public()), sig, challenges)
		wantFault(t, err, fault.ProofInvalid)
	})
	t.Run("Ed25519 over a hash", func(t *testing.T) {
		t.Parallel()
		signer := acceptedKey(t, "Ed25519")
		digest := sha256.Sum256([]byte(email))
		_, err := policy.signature(spkiOf(t, signer.Public()), sign(t, signer, string(digest[:]), 0), challenges)
		wantFault(t, err, fault.ProofInvalid)
	})
}

// OpenSSL makes the proof from the rule's words, and it is accepted.
func TestOpenSSLProof(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	digests := map[string]string{"ECDSA-P256": "-sha256", "ECDSA-P384": "-sha384", "ECDSA-P521": "-sha512"}
	for _, k := range acceptedKeys() {
		t.Run(k.algorithm, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			private := writePrivate(t, dir, k.signer)
			if err := os.WriteFile(filepath.Join(dir, "text"), []byte(email), 0o600); err != nil {
				t.Fatal(err)
			}
			public := openssl(t, dir, "pkey", "-in", private, "-pubout")
			args := []string{"pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", "text"}
			if k.algorithm != "Ed25519" {
				digest := digests[k.algorithm]
				if strings.HasPrefix(k.algorithm, "RSA") {
					digest = "-sha256"
				}
				args = []string{"dgst", digest, "-sign", private, "text"}
			}
			key, err := policy.signature(public, openssl(t, dir, args...), challenges)
			if err != nil {
				t.Fatal(err)
			}
			checkKey(t, key, k)
		})
	}
}
