package identity

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// BenchmarkBareRS256 is the cryptography that a token can't do without: the
// measure for BenchmarkAuthenticate, in one run.
func BenchmarkBareRS256(b *testing.B) {
	tok := token(b, nil)
	dot := strings.LastIndexByte(tok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(tok[dot+1:])
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte(tok[:dot]))
	public := &key(0).PublicKey
	b.ReportAllocs()
	for b.Loop() {
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	github, err := os.ReadFile("presets/testdata/github.json")
	if err != nil {
		b.Fatal(err)
	}
	var ci map[string]any
	if err := json.Unmarshal(github, &ci); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"iss", "iat", "nbf", "exp"} {
		delete(ci, name)
	}
	for _, c := range []struct {
		name   string
		config IssuerConfig
		claims map[string]any
	}{
		{"email", emailIssuer(), nil},
		{"github", IssuerConfig{URL: "https://issuer.example", Type: TypeCI, Preset: "github", Audiences: []string{"sigstore"}}, ci},
	} {
		b.Run(c.name, func(b *testing.B) {
			v, _, _ := verifier(b, c.config)
			tok := token(b, c.claims)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Authenticate(b.Context(), tok); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPeek(b *testing.B) {
	tok := token(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := peek(tok); err != nil {
			b.Fatal(err)
		}
	}
}
