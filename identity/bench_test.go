package identity

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/oidc"
)

// bare is the cryptography that a token can't do without.
func bare(tb testing.TB) func() {
	tb.Helper()
	tok := token(tb, nil)
	dot := strings.LastIndexByte(tok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(tok[dot+1:])
	if err != nil {
		tb.Fatal(err)
	}
	input, public := []byte(tok[:dot]), &key(0).PublicKey
	return func() {
		digest := sha256.Sum256(input)
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkBareRS256 is the measure for BenchmarkAuthenticate, in one run.
func BenchmarkBareRS256(b *testing.B) {
	check := bare(b)
	b.ReportAllocs()
	for b.Loop() {
		check()
	}
}

// warmCases are issuers with the claims of their tokens.
func warmCases(tb testing.TB) map[string]struct {
	config IssuerConfig
	claims map[string]any
} {
	tb.Helper()
	github, err := os.ReadFile("presets/testdata/github.json")
	if err != nil {
		tb.Fatal(err)
	}
	var ci map[string]any
	if err := json.Unmarshal(github, &ci); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"iss", "iat", "nbf", "exp"} {
		delete(ci, name)
	}
	return map[string]struct {
		config IssuerConfig
		claims map[string]any
	}{
		"email": {emailIssuer(), nil},
		"github": {IssuerConfig{
			URL: "https://issuer.example", Type: TypeCI, Preset: "github", Audiences: []string{"sigstore"},
			Allow: `claims.repository_owner == "octo-org" && principal.san.startsWith("https://github.com/octo-org/")`,
		}, ci},
	}
}

// BenchmarkAuthenticate reports x-bare too: the CPU time of a token, with its
// share of the collection of garbage, over that of the bare signature check.
// The two are taken by turns, so that what else the machine does burdens both.
func BenchmarkAuthenticate(b *testing.B) {
	for name, c := range warmCases(b) {
		b.Run(name, func(b *testing.B) {
			v, _, _ := verifier(b, c.config)
			tok, check := token(b, c.claims), bare(b)
			authenticate := func() {
				if _, err := v.Authenticate(b.Context(), tok); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				authenticate()
			}
			const turns, each = 50, 200
			var ours, least time.Duration
			for range turns {
				ours += cpuTime(b, each, authenticate)
				least += cpuTime(b, each, check)
			}
			b.ReportMetric(float64(ours)/float64(least), "x-bare")
		})
	}
}

// cpuTime is what the process spends on doing it that often.
func cpuTime(tb testing.TB, times int, do func()) time.Duration {
	tb.Helper()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			tb.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := used()
	for range times {
		do()
	}
	return used() - began
}

// TestAuthenticateAllocates bounds what a warm token costs in memory. It isn't
// parallel: it counts the allocations of the whole process.
func TestAuthenticateAllocates(t *testing.T) {
	for name, c := range warmCases(t) {
		v, _, _ := verifier(t, c.config)
		tok := token(t, c.claims)
		got := testing.AllocsPerRun(100, func() {
			if _, err := v.Authenticate(t.Context(), tok); err != nil {
				t.Fatal(err)
			}
		})
		const most = 30 // the signature's are 9
		if got > most {
			t.Errorf("%s: %.0f allocations a token, at most %d", name, got, most)
		}
	}
}

// crowd is a verifier with many issuers, and one token's issuer of each kind.
func crowd(tb testing.TB, exact, patterns int) *Verifier {
	tb.Helper()
	issuers := []IssuerConfig{emailIssuer(), {Pattern: "https://*.k8s.example.com/id/*", Type: TypeEmail, Allow: "true", Audiences: []string{"sigstore"}}}
	for i := range exact {
		c := emailIssuer()
		c.URL = fmt.Sprintf("https://issuer-%d.example/realms/main", i)
		issuers = append(issuers, c)
	}
	for i := range patterns {
		c := emailIssuer()
		c.URL, c.Pattern = "", fmt.Sprintf("https://*.cluster-%d.example.com/id/*", i)
		if i%2 == 1 { // half of them look like the token's own until the last part
			c.Pattern = fmt.Sprintf("https://*.k8s.example.com/id-%d/*", i)
		}
		issuers = append(issuers, c)
	}
	v, _, _ := verifier(tb, issuers...)
	return v
}

// BenchmarkMatch finds a token's issuer among few and among many.
func BenchmarkMatch(b *testing.B) {
	for size, v := range map[string]*Verifier{"few": crowd(b, 0, 0), "1000 and 200 patterns": crowd(b, 1000, 200)} {
		for name, url := range map[string]string{
			"exact": "https://issuer.example", "pattern": "https://eu.k8s.example.com/id/A1B2", "unknown": "https://eu.k9s.example.com/id/A1B2",
		} {
			b.Run(size+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if i := v.current.Load().match(url); (len(i) == 0) != (name == "unknown") {
						b.Fatal("mismatch")
					}
				}
			})
		}
	}
}

func BenchmarkParseUnverified(b *testing.B) {
	tok := token(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := oidc.ParseUnverified(tok); err != nil {
			b.Fatal(err)
		}
	}
}
