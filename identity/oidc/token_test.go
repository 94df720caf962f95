package oidc

import (
	"errors"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// FuzzParseUnverified reads arbitrary tokens: each is refused with a classified error, or
// gives an algorithm of the list.
func FuzzParseUnverified(f *testing.F) {
	f.Add("a.b.c")
	f.Add(b64(plainHeader) + "." + b64(`{"iss":"https://issuer.example","aud":"sigstore","exp":1}`) + ".AAAA")
	f.Add(b64(`{"alg":"none"}`) + ".e30.")
	f.Add("....")
	f.Fuzz(func(t *testing.T, token string) {
		u, err := ParseUnverified(token)
		if err != nil {
			if e := new(fault.Error); !errors.As(err, &e) || e.Kind() != fault.Unauthenticated && e.Kind() != fault.TooLarge {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		if !strings.Contains(strings.Join(algorithms, " "), u.Algorithm) || u.Algorithm == "" {
			t.Fatalf("algorithm %q", u.Algorithm)
		}
	})
}
