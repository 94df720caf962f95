package ca

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
)

// TestPolicyChoosesTheLifetime holds the validity of what is issued against
// what the issuer's policy and the CA's own configuration say.
func TestPolicyChoosesTheLifetime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		own, lifetime, most, profile, want time.Duration
	}{
		"the CA's own":                 {own: 10 * time.Minute, want: 10 * time.Minute},
		"longer than the default most": {own: time.Hour, want: time.Hour},
		"the issuer's":                 {own: 10 * time.Minute, lifetime: 3 * time.Minute, want: 3 * time.Minute},
		"the issuer bounds the CA's":   {own: 20 * time.Minute, most: 15 * time.Minute, want: 15 * time.Minute},
		"a profile's":                  {own: 10 * time.Minute, lifetime: 3 * time.Minute, most: time.Hour, profile: time.Hour, want: time.Hour},
		"the shortest":                 {own: 10 * time.Minute, profile: time.Minute, want: time.Minute},
	} {
		r := newRig(t, kms.ECDSAP256, func(config *Config, _ *Options) { config.Lifetime = c.own })
		issuer := identitytest.New(t)
		config := issuer.Config()
		config.Lifetime, config.MaxLifetime = c.lifetime, c.most
		if c.profile != 0 {
			config.Profiles = []policy.Profile{{Name: "p", When: `principal.san_type == "email"`, Lifetime: c.profile}}
		}
		who := issuer.PrincipalAs(t, config, nil)
		key := proven(t, who, kms.ECDSAP256)
		got, err := r.issuer.Issue(t.Context(), who, key)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf, err := x509.ParseCertificate(got.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if lives := leaf.NotAfter.Sub(leaf.NotBefore) + time.Second; lives != c.want {
			t.Errorf("%s: it lives %s, want %s", name, lives, c.want)
		}
	}
}
